//! Several identities of one process: the default first, each with its hint, no hint twice; told by a
//! library that others wrote, and again when an entry goes.

use std::collections::HashSet;

use doorward::app::Stage;
use futures_util::StreamExt as _;
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Context};

use super::workload_api::{endpoint, entry, runtime, soon, stage};

fn told(context: &X509Context) -> Vec<(String, String)> {
    let svids = context.svids().iter();
    let told = |svid: &std::sync::Arc<spiffe::X509Svid>| {
        (svid.spiffe_id().path().to_owned(), svid.hint().unwrap_or_default().to_owned())
    };
    svids.map(told).collect()
}

/// What the entries say, in the order in which they are told: the default, then by age, each hint once.
fn wanted(stage: &Stage) -> Vec<(String, String)> {
    let listed = stage.operator_must(&["entry", "list"], None).unwrap().stdout;
    let entries = listed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut entries: Vec<Value> = entries.collect();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    entries.sort_by_key(|it| (it["default"] != true, text(it, "created"), text(it, "id")));
    let mut hints = HashSet::new();
    entries.retain(|it| it["hint"].is_null() || hints.insert(text(it, "hint")));
    let path = |it: &Value| text(it, "spiffe_id").replace("spiffe://dev.doorward", "");
    entries.iter().map(|it| (path(it), text(it, "hint"))).collect()
}

#[test]
fn the_default_comes_first_and_each_hint_once() {
    let stage = stage();
    let [one, two] = ["one", "two"].map(|name| entry(&stage, name, &["--hint", "internal"]));
    entry(&stage, "plain", &[]);
    entry(&stage, "outside", &["--hint", "public face", "--default"]);

    let shown = stage.operator_must(&["entry", "show", &one], None).unwrap();
    assert_eq!(shown.json()["hint"], "internal");
    let listed = stage.operator_must(&["entry", "list"], None).unwrap();
    assert!(listed.stdout.contains("\"hint\":\"public face\""));
    let long = "h".repeat(1025);
    for bad in ["", "a\nb", long.as_str()] {
        let args = ["entry", "create", "--id", "x", "--selector", "uid:1", "--hint", bad];
        let refused = stage.operator(&args, None).unwrap();
        assert_eq!(refused.code, 2, "{bad:?}: {refused:?}");
    }

    runtime().block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        let mut stream = client.stream_x509_contexts().await.unwrap();
        let all = wanted(&stage);
        assert_eq!((all.len(), all[0].0.as_str()), (3, "/outside"), "{all:?}");
        loop {
            let context = soon(stream.next()).await.unwrap().unwrap();
            if told(&context) == all {
                break; // the agent may have heard of the entries one after the other
            }
        }
        let tokens = client.fetch_all_jwt_svids(["vault"], None).await.unwrap();
        let tokens: Vec<_> = tokens
            .iter()
            .map(|it| (it.spiffe_id().path().to_owned(), it.hint().unwrap_or_default().to_owned()))
            .collect();
        assert_eq!(tokens, all, "tokens in the same order, with the same hints");
        // By its name, the one whose hint is taken is given too.
        for name in ["one", "two"] {
            let id = format!("spiffe://dev.doorward/{name}").parse().unwrap();
            let named = client.fetch_jwt_svid(["vault"], Some(&id)).await.unwrap();
            assert_eq!((named.spiffe_id(), named.hint()), (&id, Some("internal")));
        }

        // The one before it goes: the next of that hint takes its place.
        let is_one = all.iter().any(|(path, _)| path == "/one");
        let first = if is_one { &one } else { &two };
        stage.operator_must(&["entry", "delete", first], None).unwrap();
        let after = wanted(&stage);
        assert!(after != all && after.len() == 3, "{after:?}");
        loop {
            let context = soon(stream.next()).await.unwrap().unwrap();
            if told(&context) == after {
                break;
            }
        }
    });
}
