// A workload written with go-spiffe, as its users write it. It prints its SPIFFE ID and how many
// trust domains it was told of, and then, for each new state, its certificate's serial number, until
// it has seen as many as its argument says.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type watcher struct {
	left int
	done chan error
}

func (w *watcher) OnX509ContextUpdate(state *workloadapi.X509Context) {
	svid := state.DefaultSVID()
	fmt.Println(svid.ID, state.Bundles.Len(), svid.Certificates[0].SerialNumber)
	if w.left--; w.left == 0 {
		w.done <- nil
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, err) // it tries again by itself
}

func run() error {
	states, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx) // from $SPIFFE_ENDPOINT_SOCKET
	if err != nil {
		return err
	}
	defer client.Close()
	w := &watcher{left: states, done: make(chan error, 8)}
	go func() { w.done <- client.WatchX509Context(ctx, w) }()
	return <-w.done
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
