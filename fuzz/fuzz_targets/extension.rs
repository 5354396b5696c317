//! The private extension of SVIDs: any bytes are refused, or are exactly what would be written.
#![no_main]

use doorward::identity::SvidExtension;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(extension) = SvidExtension::from_der(bytes) {
        assert_eq!(extension.to_der(), bytes);
    }
});
