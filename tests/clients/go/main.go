// A workload written with go-spiffe, as its users write it. It prints its SPIFFE ID and how many
// trust domains it was told of, and then, for each new state, its certificate's serial number, until
// it has seen as many as its argument says. With the argument `jwt` it has a token issued and checked.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
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

// tokens has a JWT-SVID issued, checks it with the keys that it is told and by the agent, and prints
// whose it is by each of them, and how many of two checks for another audience refuse it.
func tokens() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "https://a.example"})
	if err != nil {
		return err
	}
	keys, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	token := svid.Marshal()
	offline, err := jwtsvid.ParseAndValidate(token, keys, []string{"https://a.example"})
	if err != nil {
		return err
	}
	online, err := client.ValidateJWTSVID(ctx, token, "https://a.example")
	if err != nil {
		return err
	}
	refused := 0
	if _, err := jwtsvid.ParseAndValidate(token, keys, []string{"https://b.example"}); err != nil {
		refused++
	}
	if _, err := client.ValidateJWTSVID(ctx, token, "https://b.example"); err != nil {
		refused++
	}
	fmt.Println(offline.ID, online.ID, refused)
	return nil
}

func run() error {
	if os.Args[1] == "jwt" {
		return tokens()
	}
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
