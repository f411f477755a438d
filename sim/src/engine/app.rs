//! An app that is called: it begins what it is asked to, and ends it some time later, well or not, or never. Asked what
//! became of a call, it tells, if its target remembers runs and it was not itself started again since.

use std::collections::BTreeMap;

use cabloy_engine::core::{Kind, Start};
use cabloy_engine::runs::{Outcome, OutcomeKind};

use super::Due;
use crate::clock::MS;
use crate::truth::Violation;
use crate::world::{PodId, World, nanos};

/// The app of a pod.
#[derive(Debug, Default)]
pub(crate) struct App {
    /// Which start of its container this is.
    pub(crate) life: u32,
    pub(crate) down: bool,
    /// What it works at, by the attempt's nonce.
    pub(crate) running: BTreeMap<String, Work>,
    /// What became of what it has worked at in this life, by the attempt's nonce.
    known: BTreeMap<String, OutcomeKind>,
}

/// What an app answers to a question.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// The work goes on.
    GoesOn,
    /// It came to this.
    Ended(OutcomeKind),
    /// It does not know the run.
    Unknown,
    /// Nothing yet: it has taken the question for a call.
    Begun,
}

/// Something that an app works at.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) run: String,
    pub(crate) number: u32,
    kind: OutcomeKind,
}

/// What an agent and its app tell a call by. Each process counts the attempts at the pod's own tasks from one.
pub(super) fn key(start: &Start, process: u32) -> String {
    let nonce = &start.attempt.nonce;
    if start.id.starts_with("i/") { format!("{} #{nonce} of {process}", start.id) } else { nonce.clone() }
}

impl World {
    /// A call reaches the app of `pod`, under this token, or of the pod's own.
    pub(super) fn app_is_called(&mut self, pod: PodId, start: &Start, token: Option<u64>) -> Result<(), Violation> {
        let process = self.pods[pod].process;
        let nonce = key(start, process);
        if self.desks[pod].app.down || (!self.calm && self.dice.chance(self.scene.unreached)) {
            self.say(|| format!("a{pod} reaches no app with {} #{}", start.id, start.attempt.number));
            self.engine_in(MS, Due::Answer { pod, process, nonce, kind: OutcomeKind::NotBegun });
            return Ok(());
        }
        self.say(|| format!("app {pod} begins {} #{} {nonce} under {token:?}", start.id, start.attempt.number));
        match token {
            Some(token) => self.begins(pod, start, token)?,
            None => self.own_begins(pod, start)?,
        }
        self.app_works(pod, start, nonce);
        Ok(())
    }

    /// The app is asked what became of an attempt; nothing if no answer comes back.
    pub(super) fn app_is_asked(&mut self, pod: PodId, start: &Start) -> Result<Option<Told>, Violation> {
        let (nonce, lost) = (&start.attempt.nonce, !self.calm && self.dice.chance(self.scene.unreached));
        let app = &self.desks[pod].app;
        if app.down {
            return Ok(None);
        }
        let remembers = start.target.remembers_runs();
        let told = match app.known.get(nonce) {
            _ if remembers && app.running.contains_key(nonce) => Told::GoesOn,
            Some(kind) if remembers => Told::Ended(*kind),
            _ if remembers && start.asks => Told::Unknown,
            _ => Told::Begun,
        };
        if matches!(told, Told::Begun) {
            self.say(|| format!("app {pod} takes the question for a call: {} #{}", start.id, start.attempt.number));
            self.attempt_begins(start)?;
            self.app_works(pod, start, start.attempt.nonce.clone());
        }
        Ok(Some(told).filter(|_| !lost))
    }

    fn app_works(&mut self, pod: PodId, start: &Start, nonce: String) {
        let scene = &self.scene;
        let (fails, hangs, long) = if self.calm { (0, 0, 0) } else { (scene.fails, scene.hangs, scene.long) };
        let kind = if self.dice.chance(fails) { OutcomeKind::Failed } else { OutcomeKind::Done };
        let timeout = self.timeout_of(start);
        let span = if self.dice.chance(hangs) {
            3 * timeout
        } else if self.dice.chance(long) {
            self.dice.between(timeout / 2, timeout * 5 / 4)
        } else {
            self.dice.between(MS, (timeout / 8).max(2 * MS))
        };
        let app = &mut self.desks[pod].app;
        app.running.insert(nonce.clone(), Work { run: start.id.clone(), number: start.attempt.number, kind });
        let life = app.life;
        self.engine_in(span, Due::Worked { pod, life, nonce });
    }

    fn timeout_of(&self, start: &Start) -> u64 {
        let file = &self.file;
        let ms = match start.kind {
            Kind::Schedule => file.schedules.iter().find(|it| *it.name == *start.name).map(|it| it.timeout_ms),
            Kind::Startup => file.startups.iter().find(|it| *it.name == *start.name).map(|it| it.timeout_ms),
        };
        ms.map_or(nanos(self.plan.ttl), |ms| ms * MS)
    }

    /// An app is through with something, and answers whoever still waits for it.
    pub(super) fn worked(&mut self, pod: PodId, life: u32, nonce: String) {
        let app = &mut self.desks[pod].app;
        if app.life != life {
            return;
        }
        let Some(Work { run, number, kind }) = app.running.remove(&nonce) else { return };
        app.known.insert(nonce.clone(), kind);
        self.say(|| format!("app {pod} ends {run} #{number}: {kind:?}"));
        self.watch.ends(&run, &nonce, kind);
        let process = self.pods[pod].process;
        self.engine_in(MS / 10, Due::Answer { pod, process, nonce, kind });
    }

    /// The app hears that nobody wants to know any more how something ends.
    pub(super) fn hung_up(&mut self, pod: PodId, nonce: &str) {
        if let Some(Work { run, .. }) = self.desks[pod].app.running.remove(nonce) {
            self.watch.ends(&run, nonce, OutcomeKind::Cancelled);
        }
    }

    /// The container of an app ends: what it worked at ends with it.
    pub(super) fn app_ends(&mut self, pod: PodId) {
        let process = self.pods[pod].process;
        let app = &mut self.desks[pod].app;
        (app.life, app.down) = (app.life + 1, true);
        app.known.clear();
        for (nonce, Work { run, .. }) in std::mem::take(&mut app.running) {
            self.watch.ends(&run, &nonce, OutcomeKind::Failed);
            self.engine_in(MS, Due::Answer { pod, process, nonce, kind: OutcomeKind::Failed });
        }
    }
}

/// What the agent makes of an answer.
pub(super) fn outcome(kind: OutcomeKind, at: jiff::Timestamp) -> Outcome {
    match kind {
        OutcomeKind::NotBegun => Outcome { retry_after_ms: Some(100), ..Outcome::not_begun(at) },
        OutcomeKind::Cancelled => Outcome::cancelled(at),
        _ => Outcome { kind, reason: "R".to_owned(), message: String::new(), retry_after_ms: None, at },
    }
}
