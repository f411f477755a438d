//! The signatures of a real agent's calls, as an app finds them that verifies with the public library.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::path::Path;

use cabloy_tests::port::free_port;
use cabloy_tests::process::{Process, bound};
use cabloy_tests::{npm, wait};
use serde::Deserialize;
use serde_json::json;
use stage::{SOON, Stage, get, schedule};

/// Two keys, and what the app is to tell of a call that both, the first, the second or none have signed.
const KEYS: [&str; 2] = ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];

/// A call as the app found it.
#[derive(Debug, Deserialize)]
struct Call {
    path: String,
    body: String,
    id: Option<String>,
    key: Option<String>,
    attempt: Option<String>,
    /// By which of the keys the call is signed.
    verified: [bool; 2],
    /// The same of calls that were changed on the way.
    forged: Vec<bool>,
}

struct App {
    port: u16,
    process: Process,
}

impl App {
    fn start(dir: &Path) -> Self {
        let port = free_port().unwrap();
        let mut command = bound("node");
        command.arg(npm::fixture("webhooks").join("app.js")).arg(port.to_string()).arg(npm::modules("webhooks"));
        command.args(KEYS);
        Self { port, process: Process::spawn("app", command, &dir.join("app.log")).unwrap() }
    }

    async fn calls(&self) -> Vec<Call> {
        wait::until("the app to tell its calls", SOON, async || match get(self.port, "/calls").await {
            Ok((_, text)) => Ok(serde_json::from_str(&text).unwrap()),
            Err(error) => Err(format!("{error}: {}", self.process.log_tail(5))),
        })
        .await
    }

    /// Waits for a call that just these keys have signed.
    async fn signed_by(&self, keys: [bool; 2]) {
        let seen = self.calls().await.len();
        wait::until(&format!("a call that is signed by {keys:?}"), SOON, async || {
            let calls = self.calls().await;
            calls[seen..].iter().any(|call| call.verified == keys).then_some(()).ok_or(format!("{:?}", calls.last()))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_verifies_its_agent_and_keys_change_while_both_run() {
    let stage = Stage::new(1);
    let app = App::start(stage.dir());
    let key_file = stage.dir().join("signing/key");
    std::fs::create_dir_all(key_file.parent().unwrap()).unwrap();
    let write = |text: &str| {
        // In one go, as kubelet does.
        std::fs::write(key_file.with_extension("new"), text).unwrap();
        std::fs::rename(key_file.with_extension("new"), &key_file).unwrap();
    };
    stage.files.edit(|file| {
        file["schedules"] = json!(["retried", "accepted"].map(|name| {
            let mut schedule = schedule(name, 300);
            schedule["target"]["http"]["body"] = json!({"word": "Übermut"});
            schedule["retry"]["limit"] = json!(1);
            schedule
        }));
    });
    write(KEYS[0]);
    let agent = stage.agent_beside("a", app.port).signing_key(&key_file).start();
    app.signed_by([true, false]).await;
    wait::until("an answer to each kind of request", SOON, async || {
        let calls = app.calls().await;
        let has = |path: &str, attempt: Option<&str>| {
            calls.iter().any(|call| call.path == path && call.attempt.as_deref() == attempt)
        };
        has("/retried", Some("2")) && has("/jobs/1", None)
    })
    .await;
    let calls = app.calls().await;
    for call in &calls {
        assert_eq!(call.verified, [true, false], "{call:?}");
        assert!(call.forged.iter().all(|verified| !verified), "{call:?}");
        // A poll after an accepted run has no key of its own.
        let id = call.id.as_deref().unwrap();
        assert!(id.starts_with("prod/shop/"), "{id}");
        assert!(call.key.as_ref().is_none_or(|key| *key == format!("\"{id}\"")), "{call:?}");
    }
    assert!(calls.iter().any(|call| call.body.contains("Übermut")), "bytes are signed, whatever they stand for");
    let again = calls.iter().find(|call| call.attempt.as_deref() == Some("2")).unwrap();
    assert!(calls.iter().any(|call| call.attempt.as_deref() == Some("1") && call.id == again.id), "one run, one id");

    // The next key beside the one before, then alone.
    write(&format!("{}\n{}\n", KEYS[1], KEYS[0]));
    app.signed_by([true, true]).await;
    agent.until("it signs with both", |status| status.signing.keys == 2 && status.problems.is_empty()).await;
    write(KEYS[1]);
    app.signed_by([false, true]).await;

    // What is wrong is said, and neither stops the calls nor the agent.
    write(&format!("{} whsec_tooshort", KEYS[1]));
    let status = agent.until("the bad key is named", |status| !status.problems.is_empty()).await;
    assert_eq!(status.problems[0].reason, "InvalidSigningKey");
    assert!(status.problems[0].message.starts_with("key 2 of 2 is left out"), "{:?}", status.problems);
    assert_eq!(status.problems[0].path.as_deref(), key_file.to_str());
    app.signed_by([false, true]).await;
    std::fs::remove_file(&key_file).unwrap();
    app.signed_by([false, false]).await;
    assert_eq!(app.calls().await.last().unwrap().id, None, "no signature, no other header of it");
    let status = agent.until("the key is missed", |status| status.signing.keys == 0).await;
    assert_eq!(status.problems[0].reason, "MissingSigningKey");
    assert!(agent.is_ready().await);
    write(KEYS[0]);
    app.signed_by([true, false]).await;
    agent.until("nothing is wrong", |status| status.problems.is_empty()).await;

    let shown = format!("{}{}", agent.log(), agent.get("/status").await.1);
    assert!(shown.contains("signing keys") && !shown.contains("C2FVsBQI") && !shown.contains("tooshort"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_given_no_key_signs_nothing_and_misses_nothing() {
    let stage = Stage::new(1);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", 200)]));
    let agent = stage.agent("a").start();
    let calls = stage.calls_until("a tick", |calls| !calls.is_empty()).await;
    assert!(calls[0].headers.keys().all(|name| !name.starts_with("webhook-")), "{:?}", calls[0].headers);
    let status = agent.status().await;
    assert_eq!((status.signing.keys, status.problems), (0, vec![]));
}
