//! A broker that goes away below its agent and comes back: nobody touches the agent, and workloads
//! are served again.

use std::time::Instant;

use doorward::app::Stage;
use doorward::model::limits;

use super::journey::program;
use super::scene::{add_rows, register, until};

#[test]
fn an_agent_finds_its_broker_again_after_a_restart_and_a_kill() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let api = stage.workload("api").unwrap();
    register(&stage, "api", &api);
    stage.operator_must(&["put", "shop/x"], Some(b"value")).unwrap();
    add_rows(
        &stage,
        "\n#@ owner=shop\np, api-reads, spiffe://dev.doorward/api, secret/shop/x, read, managed, \
         -, -, allow\n",
    );
    // After a kill the agent's connection is dead only once it was silent for `IDLE_TIMEOUT`.
    let within = 2 * limits::IDLE_TIMEOUT;
    let get = |stage: &Stage| stage.as_workload(&api, &["get", "shop/x"]).unwrap();
    until(within, || get(&stage), |ran| ran.code == 0);
    let agent = stage.pid("agent").unwrap();
    for killed in [false, true] {
        if killed {
            let pid = nix::unistd::Pid::from_raw(stage.pid("broker").unwrap().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        stage.stop("broker");
        let ran = get(&stage);
        assert_ne!(ran.code, 0, "nothing is served without a broker: {ran:?}");
        assert!(!ran.stdout.contains("value"), "{ran:?}");
        stage.start_broker().unwrap();
        // The row asks for a profile, so the device has reported anew too.
        let began = Instant::now();
        let ran = until(within, || get(&stage), |ran| ran.code == 0);
        eprintln!("served again after {:?} (killed: {killed})", began.elapsed());
        assert!(ran.stdout.contains("value"), "{ran:?}");
        assert_eq!(stage.pid("agent").unwrap(), agent);
        assert!(stage.device().unwrap()["evidence_age_ms"].is_u64());
    }
}
