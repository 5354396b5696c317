//! Receipts of the log: no text passes for one that this key never signed.
#![no_main]

use doorward::decision_log::{LogKey, check_receipt};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8], &str)| {
    let (receipt, record, other_key) = input;
    let vkey = LogKey::from_seed(&[7; 32]).vkey("corp.example/decisions/0");
    assert!(check_receipt(receipt, record, &vkey).is_err());
    let _ = check_receipt(receipt, record, other_key);
});
