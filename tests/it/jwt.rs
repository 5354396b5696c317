//! JWT-SVIDs from the broker's keys to a workload and to whoever it shows them to: what is given to
//! whom, what the log says of it, what a rotation and a revocation do, and what a verifier finds that
//! knows no SPIFFE.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::app::Stage;
use futures_util::StreamExt as _;
use serde_json::Value;
use spiffe::{JwtSource, JwtSvid, WorkloadApiClient, WorkloadApiError};

use super::ca::{acknowledged, ca, of};
use super::granted::{of_op, outcome, records};
use super::scene::{add_rows, traces, until};
use super::workload_api::{endpoint, entry, runtime, soon, stage};

const MOST: Duration = Duration::from_secs(90);
const A: &str = "https://a.example";
const B: &str = "https://b.example";
const TESTER: &str = "spiffe://dev.doorward/tester";

/// Between two looks: each may be a record.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Asks until this process is given a token.
async fn given(client: &WorkloadApiClient, audience: &str) -> JwtSvid {
    let asking = async {
        loop {
            match client.fetch_jwt_svid([audience], None).await {
                Ok(svid) => return svid,
                Err(WorkloadApiError::NoIdentityIssued) => pause().await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    soon(asking).await
}

fn is_nobody<T: std::fmt::Debug>(answer: &Result<T, WorkloadApiError>) -> bool {
    matches!(answer, Err(WorkloadApiError::NoIdentityIssued))
}

/// The code of gRPC in an answer.
fn has_code<T: std::fmt::Debug>(answer: &Result<T, WorkloadApiError>, code: &str) -> bool {
    answer.as_ref().err().is_some_and(|why| format!("{why:?}").contains(code))
}

fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn kid(token: &str) -> String {
    part(token, 0)["kid"].as_str().unwrap().to_owned()
}

/// What the library makes of a token with the keys as they are told now.
async fn offline(client: &WorkloadApiClient, token: &str, audience: &str) -> bool {
    let keys = client.fetch_jwt_bundles().await.unwrap();
    JwtSvid::parse_and_validate(token, &keys, &[audience]).is_ok()
}

#[test]
fn a_token_is_given_to_its_workload_checked_by_others_and_told_in_the_log() {
    let stage = stage();
    let runtime = runtime();
    let token = runtime.block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        assert!(is_nobody(&client.fetch_jwt_svid([A], None).await));
        assert!(
            is_nobody(&client.fetch_jwt_bundles().await),
            "keys are for those with an identity"
        );
        assert!(is_nobody(&client.validate_jwt_token(A, "a.b.c").await));

        entry(&stage, "tester", &[]);
        let svid = given(&client, A).await;
        let token = svid.token().to_owned();
        assert_eq!(
            (svid.spiffe_id().to_string(), svid.audience()),
            (TESTER.into(), &[A.into()][..])
        );
        let claims = part(&token, 1);
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
        assert!(client.validate_jwt_token(A, &token).await.is_ok());
        assert!(has_code(&client.validate_jwt_token(B, &token).await, "InvalidArgument"));
        let mut forged = token.clone().into_bytes();
        let middle = forged.len() - 20;
        forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        assert!(has_code(&client.validate_jwt_token(A, &forged).await, "InvalidArgument"));
        assert!(offline(&client, &token, A).await && !offline(&client, &token, B).await);
        let source = JwtSource::builder().endpoint(endpoint(&stage)).build().await.unwrap();
        let other = source.fetch_jwt_svid([B]).await.unwrap();
        let keys = source.bundle_set().unwrap();
        assert!(JwtSvid::parse_and_validate(other.token(), &*keys, &[B]).is_ok());

        for several in [&[A, B][..], &[""], &["a\nb"]] {
            let refused = client.fetch_jwt_svid(several, None).await;
            assert!(has_code(&refused, "InvalidArgument"), "{several:?}: {refused:?}");
        }
        assert!(client.fetch_jwt_svid([A, A], None).await.is_ok(), "the same twice is one");
        identities(&stage, &client).await;
        token
    });
    the_log_says_so(&stage, &token);
}

/// Several identities: all of them, the default one first; or one by its name.
async fn identities(stage: &Stage, client: &WorkloadApiClient) {
    let second = "spiffe://dev.doorward/second";
    entry(stage, "second", &["--default", "--ttl", "60"]);
    let all = soon(async {
        loop {
            let all = client.fetch_all_jwt_svids([A], None).await.unwrap();
            if all.len() == 2 {
                return all;
            }
            pause().await;
        }
    })
    .await;
    let ids: Vec<_> = all.iter().map(|svid| svid.spiffe_id().to_string()).collect();
    assert_eq!(ids, [second, TESTER], "the default one comes first");
    let claims = part(all[0].token(), 1);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
    for id in [second, TESTER] {
        let one = client.fetch_all_jwt_svids([A], Some(&id.parse().unwrap())).await.unwrap();
        let [one] = one.as_slice() else { panic!("{} tokens", one.len()) };
        assert_eq!(one.spiffe_id().to_string(), id);
    }
    let nobodys = "spiffe://dev.doorward/else".parse().unwrap();
    assert!(is_nobody(&client.fetch_jwt_svid([A], Some(&nobodys)).await));
}

fn the_log_says_so(stage: &Stage, token: &str) {
    let (records, claims) = (records(stage), part(token, 1));
    let made = records.iter().find(|it| it["what"] == "jwt_keys").expect("the key's own record");
    assert_eq!(made["detail"]["authorities"].as_array().unwrap().len(), 1);
    let decision = of_op(&records, "issue_jwt").into_iter().find(|it| it["id"] == claims["jti"]);
    let decision = decision.expect("the token's id is the request's");
    assert_eq!(decision["req"]["act"], "issue");
    assert_eq!(decision["req"]["obj"], "svid/tester");
    assert_eq!(decision["req"]["detail"]["aud"], A);
    let note = outcome(&records, &decision["id"]);
    assert_eq!((&note["what"], &note["detail"]["aud"]), (&"issued_jwt".into(), &A.into()));
    assert_eq!(note["detail"]["kid"], kid(token));
    assert_eq!(note["detail"]["jti"], claims["jti"]);
    assert_eq!(note["detail"]["spiffe_id"], TESTER);
    assert!(note["detail"]["until"].as_str().unwrap().ends_with('Z'));
    let signature = token.rsplit('.').next().unwrap();
    let pids = [stage.pid("broker").unwrap(), stage.pid("agent").unwrap()];
    let found = traces(stage.dir(), &pids, &[signature]);
    assert!(found.is_empty(), "a token stands in {found:?}");
}

#[test]
fn a_rotation_costs_no_token_and_a_drill_ends_those_of_the_old_key() {
    let stage = stage();
    entry(&stage, "tester", &[]);
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&stage))).unwrap();
    let before = runtime.block_on(given(&client, A));
    let mut stream = runtime.block_on(client.stream_jwt_bundles()).unwrap();
    let mut keys = |wanted: usize| {
        let told = async {
            loop {
                let set = stream.next().await.unwrap().unwrap();
                let domain = "dev.doorward".try_into().unwrap();
                let bundle = set.get(&domain).unwrap();
                let kids: Vec<_> =
                    bundle.jwt_authorities().map(|key| key.key_id().to_owned()).collect();
                if kids.len() == wanted {
                    return kids;
                }
            }
        };
        runtime.block_on(async { tokio::time::timeout(MOST, told).await.expect("no such keys") })
    };
    assert_eq!(keys(1), [kid(before.token())]);
    let old = of(&ca(&stage, &["show"]), "active").remove(0);
    ca(&stage, &["prepare"]);
    let both = keys(2);
    acknowledged(&stage);
    assert_eq!(kid(runtime.block_on(given(&client, A)).token()), kid(before.token()));

    ca(&stage, &["activate"]);
    let after = runtime.block_on(given(&client, A));
    assert_ne!(kid(after.token()), kid(before.token()));
    assert!(both.contains(&kid(after.token())), "it was told before it signed");
    runtime.block_on(async {
        for token in [before.token(), after.token()] {
            assert!(client.validate_jwt_token(A, token).await.is_ok());
            assert!(offline(&client, token, A).await);
        }
    });

    ca(&stage, &["taint", &old]);
    assert_eq!(keys(1), [kid(after.token())]);
    runtime.block_on(async {
        let ended = client.validate_jwt_token(A, before.token()).await;
        assert!(has_code(&ended, "InvalidArgument"), "{ended:?}");
        assert!(!offline(&client, before.token(), A).await);
        assert!(offline(&client, after.token(), A).await);
    });
}

#[test]
fn a_revoked_identity_and_a_denied_one_get_no_token() {
    let stage = stage();
    entry(&stage, "tester", &[]);
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&stage))).unwrap();
    runtime.block_on(given(&client, A));
    stage.operator_must(&["identity", "revoke", "tester"], None).unwrap();
    assert!(is_nobody(&runtime.block_on(client.fetch_jwt_svid([A], None))), "at once");
    stage.operator_must(&["identity", "revoke", "tester", "--resume"], None).unwrap();
    runtime.block_on(given(&client, A));

    let row = "p, no-tester, group:agents, svid/tester, issue, any, -, -, deny\n";
    add_rows(&stage, row);
    assert!(is_nobody(&runtime.block_on(client.fetch_jwt_svid([A], None))));
    let records = records(&stage);
    let denied = of_op(&records, "issue_jwt").into_iter().next_back().unwrap();
    assert_eq!(
        (&denied["dec"]["verdict"], &denied["dec"]["code"]),
        (&"deny".into(), &"D102".into())
    );
}

/// Head and body of a page of the management port.
fn page(stage: &Stage, path: &str) -> (String, String) {
    let page = stage.page(path).expect("an answer");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

/// Whether a token holds under the keys of the management port, by nothing of ours.
fn holds(keys: &Value, token: &str) -> bool {
    let find = |jwk: &&Value| jwk["kid"] == kid(token).as_str();
    let Some(jwk) = keys["keys"].as_array().unwrap().iter().find(find) else { return false };
    assert_eq!(
        (&jwk["use"], &jwk["alg"], &jwk["crv"]),
        (&"sig".into(), &"ES256".into(), &"P-256".into())
    );
    let octets = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let point = [vec![4], octets("x"), octets("y")].concat();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &signature)
        .is_ok()
}

fn set_issuer(file: &Path, issuer: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    let with = format!("[advertise]\noidc_issuer = \"{issuer}\"\n");
    std::fs::write(file, text.replace("[advertise]\n", &with)).unwrap();
}

#[test]
fn a_verifier_that_knows_no_spiffe_finds_the_keys() {
    let mut stage = stage();
    entry(&stage, "tester", &[]);
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&stage))).unwrap();
    let token = runtime.block_on(given(&client, A));
    assert!(part(token.token(), 1).get("iss").is_none());
    let (head, body) = page(&stage, "/.well-known/openid-configuration");
    assert!(head.starts_with("http/1.1 404"), "{head}");
    assert!(body.contains("oidc_issuer"), "it says what to set: {body}");
    let (head, body) = page(&stage, "/keys");
    assert!(head.starts_with("http/1.1 200") && head.contains("application/json"), "{head}");
    assert!(head.contains("cache-control: public, max-age=300"), "{head}");
    let keys: Value = serde_json::from_str(&body).unwrap();
    assert!(holds(&keys, token.token()));
    assert!(!body.contains("x509") && !body.contains("x5c") && !body.contains("\"d\""), "{body}");

    stage.stop("broker");
    set_issuer(&stage.broker_dir().join("broker.toml"), "https://id.dev.example/doorward");
    stage.start_broker().unwrap();
    let (head, body) = page(&stage, "/.well-known/openid-configuration");
    assert!(head.starts_with("http/1.1 200") && head.contains("cache-control"), "{head}");
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["issuer"], "https://id.dev.example/doorward");
    assert_eq!(document["jwks_uri"], "https://id.dev.example/doorward/keys");
    let look = || runtime.block_on(client.fetch_jwt_svid([A], None)).map_err(|why| why.to_string());
    let token = until(MOST, look, Result::is_ok).unwrap();
    assert_eq!(part(token.token(), 1)["iss"], document["issuer"]);
    let keys: Value = serde_json::from_str(&page(&stage, "/keys").1).unwrap();
    assert!(holds(&keys, token.token()), "the same key after a restart");
}
