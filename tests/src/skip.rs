//! How a test says that it did not run, so that nobody takes it for passed.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;

/// Something that this machine cannot have, and why.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// In words for whoever runs the tests.
    pub reason: String,
}

impl Unavailable {
    /// For that reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Unavailable {}

/// Reports that a test did not run: on stderr, and as a line in the file named by `CABLOY_NOT_RUN`, where
/// `make test` counts them.
///
/// # Panics
/// That file cannot be written.
pub fn not_run(test: &str, reason: &dyn Display) {
    let line = format!("NOT RUN: {test}: {reason}\n");
    // Not `eprint!`: the test harness hides that of tests that pass.
    let _ = std::io::stderr().write_all(line.as_bytes());
    let Some(path) = std::env::var_os("CABLOY_NOT_RUN") else {
        return;
    };
    let report = File::options().create(true).append(true).open(&path);
    if let Err(error) = report.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("cannot report to {}: {error}", path.display());
    }
}

/// The path of the function that a local item of it is in.
#[must_use]
pub fn enclosing<T>(_: &T) -> String {
    let path = std::any::type_name::<T>();
    let path = path.rsplit_once("::").map_or(path, |(function, _)| function);
    path.replace("::{{closure}}", "")
}

/// The value of a `Result`; where it is an [`Unavailable`], the test reports that and returns.
#[macro_export]
macro_rules! require {
    ($found:expr) => {{
        fn here() {}
        match $found {
            Ok(value) => value,
            Err(unavailable) => {
                $crate::skip::not_run(&$crate::skip::enclosing(&here), &unavailable);
                return;
            }
        }
    }};
}

/// The shared node of this test process; where the machine cannot have one, the test reports that and returns.
#[macro_export]
macro_rules! require_node {
    () => {
        $crate::require!($crate::cluster::Cluster::node())
    };
}
