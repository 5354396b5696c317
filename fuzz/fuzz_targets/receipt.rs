//! Receipts of the log: no text passes for one that this key never signed. `====` on a line of its
//! own stands between receipt, record and the key of some other log.
#![no_main]

use doorward::decision_log::{LogKey, check_receipt};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut parts = input.splitn(3, "\n====\n");
    let mut part = || parts.next().unwrap_or_default();
    let (receipt, record, other_key) = (part(), part(), part());
    let vkey = LogKey::from_seed(&[7; 32]).vkey("corp.example/decisions/0");
    assert!(check_receipt(receipt, record.as_bytes(), &vkey).is_err());
    let _ = check_receipt(receipt, record.as_bytes(), other_key);
});
