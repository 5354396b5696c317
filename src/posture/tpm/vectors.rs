//! What swtpm made, for tests.

/// The bytes of one value.
pub fn vector(name: &str) -> Vec<u8> {
    let text = include_str!("../../../tests/vectors/tpm/swtpm.txt");
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    hex::decode(found.unwrap_or_else(|| panic!("no vector {name}"))).unwrap()
}
