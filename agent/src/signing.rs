//! Signatures of the requests to the app, as Standard Webhooks 1.0.0 has them: by these the app can tell its agent from
//! anybody else who reaches its port.

use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cabloy_crds::agent_status::Problem;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::Sha256;

/// What a symmetric key begins with.
const PREFIX: &str = "whsec_";

/// How many bytes a key has.
const LENGTH: RangeInclusive<usize> = 24..=64;

/// The keys, and what is wrong with their file.
#[derive(Clone, Debug, Default)]
pub struct Signing {
    keys: Arc<[SecretSlice<u8>]>,
    /// Why a request is not signed, or not with each of the keys.
    pub problems: Vec<Problem>,
}

/// Why a key is not taken; says nothing of its text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum BadKey {
    #[error("it does not begin with {PREFIX}")]
    Prefix,
    #[error("what follows {PREFIX} is not base64")]
    Base64,
    #[error("it has {0} bytes, and not {min} to {max}", min = LENGTH.start(), max = LENGTH.end())]
    Length(usize),
}

impl Signing {
    /// Reads the keys in `file`, with white space between them. What is wrong with some keeps the others from nothing: a
    /// key that is replaced signs until it is taken out.
    #[must_use]
    pub fn read(file: &Path) -> Self {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => SecretString::from(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::without("MissingSigningKey", "the file is not there", file);
            }
            Err(error) => return Self::without("InvalidSigningKey", &error.kind().to_string(), file),
        };
        let words: Vec<_> = text.expose_secret().split_whitespace().map(parse).collect();
        let count = words.len();
        let mut keys = Vec::new();
        let mut bad = Vec::new();
        for (index, key) in words.into_iter().enumerate() {
            match key {
                Ok(key) => keys.push(key),
                Err(error) => bad.push(format!("key {} of {count} is left out: {error}", index + 1)),
            }
        }
        match (keys.is_empty(), bad.is_empty()) {
            (true, true) => Self::without("MissingSigningKey", "the file is empty", file),
            (true, false) => Self::without("InvalidSigningKey", &bad.join("; "), file),
            (false, true) => Self { keys: keys.into(), problems: Vec::new() },
            (false, false) => {
                Self { keys: keys.into(), problems: vec![problem("InvalidSigningKey", bad.join("; "), file)] }
            }
        }
    }

    fn without(reason: &str, message: &str, file: &Path) -> Self {
        let message = format!("calls to the app are not signed: {message}");
        Self { keys: Arc::default(), problems: vec![problem(reason, message, file)] }
    }

    /// With how many keys requests are signed.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// The headers that sign a request with every key; none where there is no key.
    #[must_use]
    pub fn headers(&self, id: &str, now: Timestamp, body: &[u8]) -> Vec<(&'static str, String)> {
        if self.keys.is_empty() {
            return Vec::new();
        }
        let timestamp = now.as_second().to_string();
        let signatures: Vec<_> = self.keys.iter().filter_map(|key| sign(key, id, &timestamp, body)).collect();
        vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", timestamp),
            ("webhook-signature", signatures.join(" ")),
        ]
    }
}

/// Tells whether another reading of the file has anything new.
impl PartialEq for Signing {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.keys.iter(), other.keys.iter());
        self.problems == other.problems
            && ours.map(ExposeSecret::expose_secret).eq(theirs.map(ExposeSecret::expose_secret))
    }
}

fn problem(reason: &str, message: String, file: &Path) -> Problem {
    Problem { reason: reason.to_owned(), message, path: Some(file.display().to_string()) }
}

fn parse(word: &str) -> Result<SecretSlice<u8>, BadKey> {
    let text = word.strip_prefix(PREFIX).ok_or(BadKey::Prefix)?;
    // The decoder's own error would show a character of the key.
    let key = SecretSlice::from(BASE64_STANDARD.decode(text).map_err(|_| BadKey::Base64)?);
    let length = key.expose_secret().len();
    if LENGTH.contains(&length) { Ok(key) } else { Err(BadKey::Length(length)) }
}

/// A signature; there is one for any key, since HMAC takes keys of every length.
fn sign(key: &SecretSlice<u8>, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret()).ok()?;
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    Some(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// The key, message and signature that the libraries of Standard Webhooks test themselves with.
    const KEY: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
    const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";
    const OTHER_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn now() -> Timestamp {
        Timestamp::from_second(1_649_367_553).unwrap()
    }

    fn read(text: &str) -> Signing {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("key"), text).unwrap();
        Signing::read(&dir.path().join("key"))
    }

    fn header(signing: &Signing, name: &str) -> String {
        let headers = signing.headers(ID, now(), BODY);
        headers.into_iter().find(|(header, _)| *header == name).unwrap().1
    }

    #[test]
    fn a_request_is_signed_as_standard_webhooks_has_it() {
        let signing = read(&format!("{KEY}\n"));
        assert_eq!((signing.keys(), &*signing.problems), (1, &[][..]));
        assert_eq!(header(&signing, "webhook-id"), ID);
        assert_eq!(header(&signing, "webhook-timestamp"), "1649367553");
        assert_eq!(header(&signing, "webhook-signature"), SIGNATURE);
    }

    #[test]
    fn every_key_signs() {
        let both = read(&format!("{OTHER_KEY}\n {KEY}\n"));
        let other = header(&read(OTHER_KEY), "webhook-signature");
        assert_eq!(header(&both, "webhook-signature"), format!("{other} {SIGNATURE}"));
        assert!(
            both != read(KEY) && both == read(&format!("{OTHER_KEY} {KEY}")),
            "other keys are news, other space is not"
        );
    }

    #[test]
    fn a_bad_key_is_named_and_keeps_no_other_from_signing() {
        let signing = read(&format!("{KEY} plain-text whsec_%%% whsec_c2hvcnQ="));
        assert_eq!(header(&signing, "webhook-signature"), SIGNATURE);
        let problem = &signing.problems[0];
        assert_eq!(problem.reason, "InvalidSigningKey");
        assert_eq!(
            problem.message,
            "key 2 of 4 is left out: it does not begin with whsec_; key 3 of 4 is left out: what follows whsec_ is not \
             base64; key 4 of 4 is left out: it has 5 bytes, and not 24 to 64"
        );
        let none = read("plain-text");
        assert_eq!(none.headers(ID, now(), BODY), []);
        assert!(none.problems[0].message.starts_with("calls to the app are not signed: key 1 of 1"));
    }

    #[test]
    fn without_a_key_nothing_is_signed_and_that_is_said() {
        let dir = TempDir::new().unwrap();
        for signing in [Signing::read(&dir.path().join("none")), read(" \n")] {
            assert_eq!(signing.problems[0].reason, "MissingSigningKey");
            assert_eq!(signing.headers(ID, now(), BODY), []);
        }
        assert_eq!(Signing::default().problems, [], "nobody asked for signatures");
    }

    #[test]
    fn no_key_is_ever_shown() {
        let signing = read(KEY);
        let shown = format!("{signing:?}");
        assert!(!shown.contains("C2FVsBQI") && !shown.contains("[11, 97"), "{shown}");
    }
}
