//! Reaching a broker: name, socket, handshake, and the proof that it accepted us.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate, so a refused client
//! sees its own handshake succeed. Nothing here calls a connection made before the broker's
//! HANDSHAKE_DONE (RFC 9001 §4.1.2), which a server sends only once it has verified the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use quinn::{ClientConfig, ConnectError, Connection, Endpoint};

use super::client_error::ClientError;
use crate::model::limits::{CONNECT_STAGGER, CONNECT_TIMEOUT};

/// rustls wants a name; it is not sent (no SNI), and no verifier of ours looks at it.
const SERVER_NAME: &str = "doorward";
/// How often HANDSHAKE_DONE is looked for: quinn counts it, but has no event for it.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Connects to `host:port`, within the connect timeout. The endpoint must live as long as the
/// connection is used.
///
/// # Errors
/// Why there is no connection that the broker has accepted.
pub async fn dial(
    address: &str,
    config: ClientConfig,
) -> Result<(Endpoint, Connection), ClientError> {
    let reached = async {
        let (first, second) = resolve(address).await?;
        match second {
            Some(second) => race(first, second, &config).await,
            None => attempt(first, &config).await,
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, reached).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Unreachable { address: address.to_owned() }),
    }
}

/// The first address of the name, and the first of the other family, if there is one.
async fn resolve(address: &str) -> Result<(SocketAddr, Option<SocketAddr>), ClientError> {
    let failed = |source| ClientError::Address { address: address.to_owned(), source };
    let found: Vec<_> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    let Some(first) = found.first().copied() else {
        return Err(failed(std::io::ErrorKind::NotFound.into()));
    };
    let other = |candidate: &SocketAddr| candidate.is_ipv4() != first.is_ipv4();
    Ok((first, found.into_iter().find(other)))
}

/// Tries the second address shortly after the first; whichever is accepted first wins. A name that
/// resolves to both families often has a broker on only one of them.
async fn race(
    first: SocketAddr,
    second: SocketAddr,
    config: &ClientConfig,
) -> Result<(Endpoint, Connection), ClientError> {
    let early = attempt(first, config);
    let late = async {
        tokio::time::sleep(CONNECT_STAGGER).await;
        attempt(second, config).await
    };
    tokio::pin!(early, late);
    tokio::select! {
        result = &mut early => match result {
            Ok(made) => Ok(made),
            Err(error) => late.await.map_err(|_| error),
        },
        result = &mut late => match result {
            Ok(made) => Ok(made),
            Err(_) => early.await,
        },
    }
}

async fn attempt(
    to: SocketAddr,
    config: &ClientConfig,
) -> Result<(Endpoint, Connection), ClientError> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let endpoint = Endpoint::client(SocketAddr::new(any, 0)).map_err(ClientError::Local)?;
    let connecting = endpoint
        .connect_with(config.clone(), to, SERVER_NAME)
        .map_err(|error| of_connect(&error, to))?;
    let connection = connecting.await.map_err(|error| ClientError::of_connection(&error))?;
    accepted(&connection).await?;
    Ok((endpoint, connection))
}

/// Resolves once the broker has verified us, or has refused us.
async fn accepted(connection: &Connection) -> Result<(), ClientError> {
    while connection.stats().frame_rx.handshake_done == 0 {
        tokio::select! {
            error = connection.closed() => return Err(ClientError::of_connection(&error)),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    Ok(())
}

fn of_connect(error: &ConnectError, to: SocketAddr) -> ClientError {
    match error {
        ConnectError::InvalidRemoteAddress(_) => ClientError::Address {
            address: to.to_string(),
            source: std::io::ErrorKind::InvalidInput.into(),
        },
        other => ClientError::Broken(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn addresses_are_taken_as_they_are_written() {
        let (first, second) = run(resolve("127.0.0.1:8443")).unwrap();
        assert_eq!((first, second), ("127.0.0.1:8443".parse().unwrap(), None));
        let (first, _) = run(resolve("[::1]:8443")).unwrap();
        assert!(first.is_ipv6());
        for bad in ["", "127.0.0.1", "127.0.0.1:99999"] {
            let error = run(resolve(bad)).unwrap_err();
            assert!(matches!(error, ClientError::Address { .. }), "{error}");
            assert!(error.is_unavailable());
        }
    }
}
