//! The admin socket of a sealed broker: no bytes may panic a reader, and whatever is accepted is
//! written back to the same ask.
#![no_main]

use doorward::wire::{
    parse_admin_ask, parse_admin_reply, read_admin_ask, read_admin_reply, write_admin_ask,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(ask) = parse_admin_ask(bytes) {
        let text = serde_json::to_vec(&ask).expect("an ask has a json form");
        assert_eq!(parse_admin_ask(&text).expect("it reads back"), ask);
    }
    if let Ok(reply) = parse_admin_reply(bytes) {
        let text = serde_json::to_vec(&reply).expect("a reply has a json form");
        // Escapes can make a head longer when it is written anew; that is the only way to fail.
        if let Ok(again) = parse_admin_reply(&text) {
            assert_eq!(again, reply);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let _ = read_admin_reply(&mut &*bytes).await;
        let Ok((ask, body)) = read_admin_ask(&mut &*bytes).await else { return };
        assert!(body.len() <= ask.body_max());
        let mut written = Vec::new();
        write_admin_ask(&mut written, ask, &body).await.expect("what was read can be written");
        let (again, same) = read_admin_ask(&mut written.as_slice()).await.expect("it reads back");
        assert_eq!((again, same.expose()), (ask, body.expose()));
    });
});
