//! A workload that serves mutual TLS with `spiffe-rustls` out of the Workload API, as its users write
//! it: `SPIFFE_ENDPOINT_SOCKET=unix://… mtls_server spiffe://dev.doorward/client`.
//!
//! Prints its port, then answers each connection of that one peer with a line. Ends at the end of its
//! standard input.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, Stream};
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_server};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let peer = std::env::args().nth(1).ok_or("the peer's SPIFFE ID is missing")?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter(); // for the libraries' own tasks
    let source = runtime.block_on(X509Source::new())?; // from $SPIFFE_ENDPOINT_SOCKET
    let config = Arc::new(mtls_server(source).authorize(authorizer::exact([peer])?).build()?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let config = config.clone();
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                if let Err(why) = greet(config, &mut stream) {
                    eprintln!("{why}");
                }
            });
        }
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn greet(config: Arc<ServerConfig>, stream: &mut TcpStream) -> Result<(), Failure> {
    let mut connection = ServerConnection::new(config)?;
    let mut tls = Stream::new(&mut connection, stream);
    tls.write_all(b"hello\n")?;
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}
