//! Short digests: names for texts, and numbers that are the same wherever they are computed.

use sha2::{Digest, Sha256};

/// The first 16 bytes of SHA-256 over `parts`, with a zero byte between every two.
#[must_use]
pub fn number(parts: &[&[u8]]) -> u128 {
    Sha256::digest(parts.join(&0)).iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// The first 8 bytes of the same, as 16 hexadecimal digits.
#[must_use]
pub fn name(parts: &[&[u8]]) -> String {
    format!("{:016x}", number(parts) >> 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_beginning_of_sha_256() {
        assert_eq!(name(&[b"abc"]), "ba7816bf8f01cfea");
        assert_eq!(name(&[b"a", b"b"]), name(&[b"a\0b"]));
        assert_eq!(number(&[b"abc"]), 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223);
    }
}
