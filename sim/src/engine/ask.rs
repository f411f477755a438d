//! An agent that was started again beside a living app asks it what became of the calls of the process before, as the real
//! driver does (`agent/src/resume.rs`).

use cabloy_engine::recording::Recording;
use cabloy_engine::resume::{Process, Resumed, resumed};
use cabloy_redlock::core::Event as Step;
use cabloy_redlock::ledger::ReadError;
use cabloy_redlock::record::Record;

use super::Due;
use super::app::{self, Told};
use super::desk::{self, Asked};
use crate::clock::MS;
use crate::truth::Violation;
use crate::world::{PodId, World};

/// How long an agent waits before it reads the ledger again, where no majority has answered.
const PAUSE: u64 = 1000 * MS;

impl World {
    /// An agent that begins reads what the process before it may have called.
    pub(crate) fn look_back(&mut self, pod: PodId) -> Result<(), Violation> {
        let op = self.ask_of(pod, Asked::Back);
        self.step(pod, Step::Look { op, ids: None })
    }

    /// It has read the ledger, and asks the app about what it found.
    pub(super) fn ask_about(&mut self, pod: PodId, found: Result<Vec<Record>, ReadError>) -> Result<(), Violation> {
        let process = self.pods[pod].process;
        let Ok(records) = found else {
            self.engine_in(PAUSE, Due::LookBack { pod, process });
            return Ok(());
        };
        let (now, desk) = (self.time_by_masters(pod), &self.desks[pod]);
        let process = Process { uid: &desk.uid, place: &desk.place(), nonces: &desk::nonces(pod, process) };
        for Resumed { start, .. } in resumed(&records, &desk.file, process, desk.rules, now) {
            let nonce = start.attempt.nonce.clone();
            self.say(|| format!("a{pod} asks its app what became of {} #{} {nonce}", start.id, start.attempt.number));
            self.outcome.tally.questions += 1;
            self.set_deadline(pod, &start, nonce.clone(), now);
            self.desks[pod].questions.insert(nonce.clone(), start);
            self.ask_app(pod, nonce)?;
        }
        Ok(())
    }

    /// A question reaches the app, and its answer is on its way, or none comes.
    pub(super) fn ask_app(&mut self, pod: PodId, nonce: String) -> Result<(), Violation> {
        let Some(start) = self.desks[pod].questions.get(&nonce).cloned() else { return Ok(()) };
        let told = self.app_is_asked(pod, &start)?;
        let process = self.pods[pod].process;
        let late = !self.calm && self.dice.chance(self.scene.long);
        match told {
            Some(told) => {
                let way = if late { self.around(300) } else { self.moment() };
                self.engine_in(way, Due::Told { pod, process, nonce, told });
            }
            None => self.ask_later(pod, nonce),
        }
        Ok(())
    }

    fn ask_later(&mut self, pod: PodId, nonce: String) {
        let (process, pause) = (self.pods[pod].process, if self.calm { MS } else { self.around(100) });
        self.engine_in(pause, Due::AskApp { pod, process, nonce });
    }

    /// The app has answered, unless it is too late for that.
    pub(super) fn told(&mut self, pod: PodId, nonce: &str, told: Told) -> Result<(), Violation> {
        if let Told::GoesOn = told {
            self.ask_later(pod, nonce.to_owned());
            return Ok(());
        }
        let Some(start) = self.desks[pod].questions.remove(nonce) else { return Ok(()) };
        self.say(|| format!("app {pod} says of {} #{}: {told:?}", start.id, start.attempt.number));
        let Told::Ended(kind) = told else { return Ok(()) };
        let outcome = app::outcome(kind, self.time_by_masters(pod));
        self.record(pod, Recording::of_call(start.id, &start.attempt, &outcome), None)
    }
}
