//! What befalls apps and pods, and what people and the operator do about them.

use std::sync::Arc;

use cabloy_crds::files::{AgentFile, Trigger};
use cabloy_engine::core;
use cabloy_engine::recording::Recording;
use cabloy_engine::runs::{Outcome, OutcomeKind};

use super::app::Told;
use super::{scene, watch};
use crate::truth::Violation;
use crate::world::{PodId, World};

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The container of an app ends beside a living agent, and is started again.
    AppCrash,
    /// An agent is killed while its app works, and started again; now and then the app ends too.
    AgentCrash,
    /// A pod is gone at once, and another one takes its place.
    PodCrash,
    /// A pod is replaced by one of the next revision.
    Roll,
    /// Somebody asks for a run of a schedule.
    Trigger,
    /// There is one more startup task, for every revision.
    Task,
    /// Somebody edits a schedule.
    Edit,
}

/// All kinds.
pub const EVENTS: [Event; 7] =
    [Event::AppCrash, Event::AgentCrash, Event::PodCrash, Event::Roll, Event::Trigger, Event::Task, Event::Edit];

/// Something that will happen to an engine, a gate or an app.
#[derive(Debug)]
pub(crate) enum Due {
    /// The driver of an agent hears that it leads.
    Begin { pod: PodId, process: u32, token: u64 },
    /// Something reaches the engine of a term.
    Tell { pod: PodId, process: u32, token: u64, event: core::Event },
    /// The engine's timer, unless it was set anew.
    Wake { pod: PodId, process: u32, set: u64 },
    /// An app's answer reaches the agent.
    Answer { pod: PodId, process: u32, nonce: String, kind: OutcomeKind },
    /// The deadline of a call has come.
    Late { pod: PodId, process: u32, nonce: String },
    /// It is tried once more to record how an attempt ended.
    Record { pod: PodId, process: u32, recording: Box<Recording>, outcome: Option<Outcome> },
    /// The gate asks the ledger.
    Ask { pod: PodId, process: u32 },
    /// The gate's timer, unless it was set anew.
    Gate { pod: PodId, process: u32, set: u64 },
    /// An agent reads again what the process before it may have called.
    LookBack { pod: PodId, process: u32 },
    /// It asks the app again what became of an attempt.
    AskApp { pod: PodId, process: u32, nonce: String },
    /// The app's answer to that reaches it.
    Told { pod: PodId, process: u32, nonce: String, told: Told },
    /// An app is through with something.
    Worked { pod: PodId, life: u32, nonce: String },
    /// The files reach a pod.
    Files { pod: PodId, version: u64, file: Arc<AgentFile> },
    /// The container of an app is up again.
    AppUp { pod: PodId, life: u32 },
    /// Something befalls an app or a pod.
    Trouble,
    /// The operator says that the app of a pod has ended, and when.
    Word { uid: String, until: jiff::Timestamp },
    /// The operator has heard which startup tasks are done.
    Mirror,
}

impl Due {
    /// Whom it reaches, if that is a process of an agent.
    pub(crate) fn process(&self) -> Option<(PodId, u32)> {
        match self {
            Self::Begin { pod, process, .. }
            | Self::Tell { pod, process, .. }
            | Self::Wake { pod, process, .. }
            | Self::Answer { pod, process, .. }
            | Self::Late { pod, process, .. }
            | Self::Record { pod, process, .. }
            | Self::Ask { pod, process }
            | Self::LookBack { pod, process }
            | Self::AskApp { pod, process, .. }
            | Self::Told { pod, process, .. }
            | Self::Gate { pod, process, .. } => Some((*pod, *process)),
            _ => None,
        }
    }
}

impl World {
    pub(crate) fn engine_in(&mut self, after: u64, due: Due) {
        self.plan_in(after, crate::world::Due::Engine(due));
    }

    /// The next event.
    pub(super) fn engine_trouble(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.around(self.scene.trouble);
        self.engine_in(next, Due::Trouble);
        let Some(kind) = self.dice.weighted(&self.scene.weights) else { return Ok(()) };
        let pod = self.dice.place(self.pods.len());
        if self.befall(EVENTS[kind], pod)? {
            self.outcome.tally.events[kind] += 1;
        }
        Ok(())
    }

    /// `false` if it cannot happen now.
    fn befall(&mut self, event: Event, pod: PodId) -> Result<bool, Violation> {
        match event {
            Event::AppCrash => {
                if self.desks[pod].app.down || !self.pods[pod].alive {
                    return Ok(false);
                }
                self.say(|| format!("app {pod} crashes"));
                self.app_ends(pod);
                // A claim that takes longer than the container to come up again is called then, and the word would be wrong.
                if self.desks[pod].is_settled() {
                    self.word_of(pod);
                }
                let (life, down) = (self.desks[pod].app.life, self.around(300));
                self.engine_in(down, Due::AppUp { pod, life });
                self.health_changes(pod)?;
            }
            Event::AgentCrash => {
                if !self.pods[pod].alive || self.desks[pod].app.running.is_empty() {
                    return Ok(false);
                }
                let after = self.around(300);
                self.restart_agent(pod, after);
                if self.dice.chance(200) {
                    self.befall(Event::AppCrash, pod)?;
                }
            }
            Event::PodCrash => {
                if !self.pods[pod].alive {
                    return Ok(false);
                }
                self.say(|| format!("pod {pod} is gone"));
                self.replace_pod(pod, self.desks[pod].revision);
            }
            Event::Roll => {
                if !self.pods[pod].alive || self.revision > 40 {
                    return Ok(false);
                }
                let newest = self.revision;
                if self.desks[pod].revision == newest {
                    self.revision += 1;
                    let mut file = AgentFile::clone(&self.file);
                    let revision = scene::revision(self.revision, &file.startups);
                    file.revisions.insert(scene::hash(self.revision), revision);
                    self.publish(file);
                }
                let revision = self.revision;
                self.say(|| format!("pod {pod} goes, one of revision {revision} comes"));
                self.replace_pod(pod, revision);
            }
            Event::Trigger => {
                let mut file = AgentFile::clone(&self.file);
                let at = self.dice.place(file.schedules.len());
                self.last_trigger += 1;
                let id = format!("t{}", self.last_trigger);
                self.say(|| format!("somebody asks for {id} of s{at}"));
                let triggers = &mut file.schedules[at].triggers;
                triggers.push(Trigger { id });
                if triggers.len() > 10 {
                    triggers.remove(0);
                }
                self.publish(file);
            }
            Event::Task => {
                let tasks = self.file.startups.len();
                if tasks > 3 {
                    return Ok(false);
                }
                self.add_task(&format!("more{tasks}"));
            }
            Event::Edit => self.edit(),
        }
        Ok(true)
    }

    /// There is one more startup task, for every revision.
    pub(crate) fn add_task(&mut self, name: &str) {
        self.say(|| format!("there is one more startup task, {name}"));
        let mut file = AgentFile::clone(&self.file);
        file.startups.push(scene::startup(name, file.election.ttl_ms));
        for revision in file.revisions.values_mut() {
            revision.startups.insert(name.to_owned(), scene::task_revision(revision.number));
        }
        self.publish(file);
    }

    /// App and agent are gone, and another pod takes the place.
    pub(crate) fn replace_pod(&mut self, pod: PodId, revision: u64) {
        self.app_ends(pod);
        self.word_of(pod);
        self.desks[pod].replace(pod, revision);
        let (mirror, rules) = (self.mirror, self.rules);
        self.pods[pod].clock.go_on_if_stopped(self.now);
        self.pods[pod].replace(pod, mirror, rules);
        self.pods[pod].candidacy.revision = revision;
        self.agent_begins_anew(pod);
        let file = Arc::clone(&self.file);
        self.engine_in(0, Due::Files { pod, version: self.version, file });
        let after = self.around(300);
        self.plan_in(after, crate::world::Due::Start(pod));
        let life = self.desks[pod].app.life;
        self.engine_in(after, Due::AppUp { pod, life });
    }

    /// The operator will say that what the pod had begun has ended.
    fn word_of(&mut self, pod: PodId) {
        let (uid, until) = (self.desks[pod].uid.clone(), watch::time(self.now_by_median()));
        let after = self.around(1000);
        self.engine_in(after, Due::Word { uid, until });
    }

    pub(crate) fn word(&mut self, uid: String, until: jiff::Timestamp) {
        let mut file = AgentFile::clone(&self.file);
        self.say(|| format!("the operator says that what {uid} had begun until {until} has ended"));
        file.ended.insert(uid, until);
        self.publish(file);
    }

    /// The operator puts what is done into the files.
    pub(super) fn mirror_done(&mut self) {
        let mut file = AgentFile::clone(&self.file);
        for (task, revision) in self.watch.startups_done() {
            let revisions = file.floor.startups.entry(task).or_default();
            if !revisions.contains(&revision) {
                revisions.push(revision);
            }
        }
        if file != *self.file {
            self.publish(file);
        }
    }

    /// New files reach every pod, each in its time.
    pub(crate) fn publish(&mut self, file: AgentFile) {
        self.file = Arc::new(file);
        self.version += 1;
        for pod in 0..self.pods.len() {
            let at_once = self.calm || self.plan.story.is_some();
            let after = if at_once { 1000 } else { self.around(500) };
            self.engine_in(after, Due::Files { pod, version: self.version, file: Arc::clone(&self.file) });
        }
    }

    pub(super) fn files_arrive(&mut self, pod: PodId, version: u64, file: Arc<AgentFile>) -> Result<(), Violation> {
        if self.desks[pod].version > version || Arc::ptr_eq(&self.desks[pod].file, &file) {
            return Ok(());
        }
        (self.desks[pod].version, self.desks[pod].file) = (version, file);
        self.desks[pod].unread = true;
        self.read_files(pod)
    }

    /// An agent takes up new files, if there are some and it does not stand still.
    pub(crate) fn read_files(&mut self, pod: PodId) -> Result<(), Violation> {
        let desk = &mut self.desks[pod];
        if self.pods[pod].stopped || !std::mem::take(&mut desk.unread) {
            return Ok(());
        }
        let file = Arc::clone(&desk.file);
        self.gate_step(pod)?;
        self.engine_step(pod, core::Event::Files(file))
    }

    pub(super) fn app_is_up(&mut self, pod: PodId, life: u32) -> Result<(), Violation> {
        if self.desks[pod].app.life != life {
            return Ok(());
        }
        self.desks[pod].app.down = false;
        if self.desks[pod].started {
            self.gate_in(pod, 0);
        }
        self.health_changes(pod)
    }

    /// The agent stands while its app answers.
    pub(super) fn health_changes(&mut self, pod: PodId) -> Result<(), Violation> {
        if !self.pods[pod].alive || self.pods[pod].stopped || !self.desks[pod].started {
            return Ok(());
        }
        let stands = !self.desks[pod].app.down;
        let candidacy = self.pods[pod].candidacy;
        if candidacy.stands == stands {
            return Ok(());
        }
        self.stand(pod, cabloy_redlock::Candidacy { stands, ..candidacy })
    }
}
