//! Tokens with RS256 for an entry that asks for them, checked by a library that others wrote and found
//! by who knows no SPIFFE.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use spiffe::{JwtSvid, WorkloadApiClient};

use super::ca::{acknowledged, ca};
use super::scene::until;
use super::workload_api::{endpoint, entry, runtime, soon, stage};

const MOST: Duration = Duration::from_secs(60);
const AUDIENCE: &str = "https://old.example";

#[test]
fn an_entry_that_asks_for_it_gets_rs256_and_the_keys_tell_of_it() {
    let stage = stage();
    let keys = || -> Value {
        let page = stage.page("/keys").unwrap();
        let (_, body) = page.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    };
    let algorithms = || {
        let keys = keys();
        let keys = keys["keys"].as_array().unwrap().iter();
        let mut all: Vec<_> = keys.map(|it| it["alg"].as_str().unwrap().to_owned()).collect();
        all.sort();
        all.dedup();
        all
    };
    assert_eq!(algorithms(), ["ES256"], "nobody has asked for another");
    entry(&stage, "tester", &["--jwt-alg", "RS256"]);
    assert_eq!(algorithms(), ["ES256", "RS256"], "told before it signs");
    let listed = stage.operator_must(&["entry", "list"], None).unwrap().stdout;
    assert!(listed.contains("RS256"), "{listed}");
    // The key of the authority that signs already rests; that of the next one was told with it.
    ca(&stage, &["prepare"]);
    acknowledged(&stage);
    ca(&stage, &["activate"]);
    let runtime = runtime();
    runtime.block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        let token = soon(async {
            loop {
                match client.fetch_jwt_svid([AUDIENCE], None).await {
                    Ok(token) => return token,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let token = token.await;
        let head = token.token().split('.').next().unwrap();
        let head: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).unwrap()).unwrap();
        assert_eq!(head["alg"], json!("RS256"));
        let bundles = client.fetch_jwt_bundles().await.unwrap();
        let taken = JwtSvid::parse_and_validate(token.token(), &bundles, &[AUDIENCE]);
        assert_eq!(taken.unwrap().spiffe_id().to_string(), "spiffe://dev.doorward/tester");
        let other = JwtSvid::parse_and_validate(token.token(), &bundles, &["https://b.example"]);
        assert!(other.is_err(), "control");
        let keys = until(MOST, keys, |it| it["keys"].as_array().unwrap().len() == 4);
        let of_it = keys["keys"].as_array().unwrap().iter().find(|it| it["kid"] == head["kid"]);
        assert_eq!(of_it.unwrap()["kty"], "RSA");
    });
}
