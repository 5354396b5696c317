//! What one local user may make the agent ask of its broker: so many identities a second, however few
//! calls they come in, or the other users of the machine go without.

use std::time::Instant;

use doorward::model::limits::{WORKLOAD_CALLS_BURST, WORKLOAD_CALLS_RATE};
use futures_util::future::join_all;
use spiffe::WorkloadApiClient;

use super::workload_api::{endpoint, entry, first_given, runtime, soon, stage};

/// Identities of this test's process.
const IDENTITIES: usize = 16;
/// Calls at once: together they ask for four bursts.
const CALLS: usize = 64;

#[test]
fn a_call_for_many_tokens_counts_as_many() {
    let stage = stage();
    for n in 0..IDENTITIES {
        entry(&stage, &format!("many-{n}"), &[]);
    }
    runtime().block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        while first_given(&client).await.svids().len() < IDENTITIES {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        // The positive control: with time in between, all are given.
        let all = soon(async {
            loop {
                match client.fetch_all_jwt_svids(["a"], None).await {
                    Ok(all) => return all,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
                }
            }
        });
        assert_eq!(all.await.len(), IDENTITIES);

        let began = Instant::now();
        let calls = (0..CALLS).map(|_| client.fetch_all_jwt_svids(["a"], None));
        let answers = soon(join_all(calls)).await;
        let given: usize = answers.iter().flatten().map(Vec::len).sum();
        let most = f64::from(WORKLOAD_CALLS_BURST)
            + f64::from(WORKLOAD_CALLS_RATE) * began.elapsed().as_secs_f64();
        assert!(given as f64 <= most, "{given} tokens where {most} may be asked for");
        let told = |why: &spiffe::WorkloadApiError| format!("{why:?}");
        let refused: Vec<_> = answers.iter().filter_map(|it| it.as_ref().err().map(told)).collect();
        assert!(
            refused.iter().any(|why| why.contains("too many calls of this user")),
            "{refused:?}"
        );
        assert!(
            !refused.iter().any(|why| why.contains("limited")),
            "the broker itself refused: the agent's rate was used up: {refused:?}"
        );
    });
}
