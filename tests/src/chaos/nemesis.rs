//! What carries faults out, and undoes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::fault::{Cut, Fault, Faults, Kind};
use super::register::Register;
use super::report::Injected;
use super::{CLUSTER, RECOVERY, World};
use crate::network::{Lost, Network};
use crate::redis::Redis;

/// How long a lost memory is waited for before another may be lost; longer than agents need to give it back.
const MEMORY: Duration = Duration::from_secs(10);

/// How long a call is waited for that shall be stopped in its midst.
const CALL: Duration = Duration::from_secs(3);

/// By which all lanes are told that it is enough.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Rests for that long, less if it is enough; whether to go on.
    pub fn rest(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |stopped| !*stopped);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// It is enough.
    pub fn stop(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was done when.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    text: Mutex<String>,
}

impl Default for History {
    fn default() -> Self {
        Self { begun: Instant::now(), text: Mutex::default() }
    }
}

impl History {
    /// Notes what is done now.
    pub fn note(&self, what: &str) {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:9.3} {what}", self.begun.elapsed().as_secs_f64());
    }

    /// All of it, a line for each, with the seconds since the beginning.
    #[must_use]
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a lane has done.
#[derive(Debug, Default)]
pub struct Done {
    /// By kind, how many.
    pub faults: BTreeMap<Kind, Injected>,
    /// The total losses after which nobody led again in time.
    pub unserved: Vec<String>,
}

/// Carries out faults until it is enough; all of them are undone by then.
///
/// # Errors
/// Something of the stage itself failed.
pub fn work(world: &World, stop: &Stop, faults: Faults) -> anyhow::Result<Done> {
    let mut done = Done::default();
    for fault in faults {
        if !stop.rest(Fault::span(fault.rest, world.plan.ttl)) {
            break;
        }
        let counts = done.faults.entry(fault.kind).or_default();
        if fault.kind.loses_memory() && !until_intact(world, stop) {
            world.history.note(&format!("withheld: {fault}"));
            counts.withheld += 1;
            continue;
        }
        world.history.note(&fault.to_string());
        let carried_out = inject(world, stop, &fault).with_context(|| fault.to_string())?;
        world.history.note(&format!("over: {}", fault.kind));
        if carried_out {
            counts.done += 1;
        } else {
            counts.missed += 1;
        }
        if fault.kind.is_total() && world.served(RECOVERY).is_none() {
            done.unserved.push(format!("nobody has led for {RECOVERY:?} after {fault}"));
        }
    }
    Ok(done)
}

/// Does it, and undoes it when its time is over; whether it could be done.
fn inject(world: &World, stop: &Stop, fault: &Fault) -> anyhow::Result<bool> {
    let lasts = Fault::span(fault.lasts, world.plan.ttl);
    let hold = || _ = stop.rest(lasts);
    let drawn = fault.target % world.pods.len();
    let pod = || if fault.leader { world.leader().unwrap_or(drawn) } else { drawn };
    let server = &world.servers[fault.target % world.servers.len()];
    match fault.kind {
        Kind::CallPause => return Ok(pause_within_call(world, lasts, stop)),
        Kind::AgentPause | Kind::PodPause | Kind::AppPause => {
            let pod = world.pod(pod());
            if fault.kind != Kind::AppPause {
                pod.freeze_agent();
            }
            if fault.kind != Kind::AgentPause {
                pod.freeze_app();
            }
            hold();
            pod.thaw();
        }
        Kind::AgentKill | Kind::PodKill | Kind::AgentStop => {
            let mut pod = world.pod(pod());
            match fault.kind {
                Kind::AgentKill => pod.kill_agent(),
                Kind::PodKill => pod.kill(),
                _ => pod.stop_agent()?,
            }
            hold();
            pod.revive(&world.plan)?;
        }
        Kind::ServerPause => {
            server.pause();
            hold();
            server.resume();
        }
        Kind::MajorityPause => {
            let others = || world.servers.iter().filter(|other| other.addr() != server.addr());
            others().for_each(Redis::pause);
            hold();
            others().for_each(Redis::resume);
        }
        Kind::ClientPause => {
            server.pause_clients();
            hold();
            server.resume_clients();
        }
        Kind::ServerKill => {
            server.kill();
            hold();
            server.restart();
        }
        Kind::ServerEmpty => {
            server.kill();
            hold();
            server.restart_empty();
        }
        Kind::ServerOld => {
            server.snapshot();
            hold();
            server.restart_from_snapshot();
        }
        Kind::ServerFlush => server.flush(),
        Kind::AllFlush => world.servers.iter().for_each(Redis::flush),
        Kind::AllEmpty | Kind::AllKill => {
            world.servers.iter().for_each(Redis::kill);
            hold();
            for server in &world.servers {
                if fault.kind == Kind::AllEmpty { server.restart_empty() } else { server.restart() }
            }
        }
        Kind::Partition => {
            let network = world.network.as_ref().context("no network")?;
            part(network, world, fault, pod())?;
            hold();
            network.heal()?;
        }
        Kind::ClockShift | Kind::ClockHour => {
            let struck = |server: usize| fault.strikes(server, world.servers.len());
            let shifted = || world.servers.iter().enumerate().filter(|(index, _)| struck(*index));
            let shift = |by| {
                world.service.clocks_shift();
                shifted().for_each(|(_, server)| server.shift_clock(by));
            };
            shift(fault.shift);
            hold();
            shift(0);
        }
    }
    Ok(true)
}

/// Stops the leader when its app has read and not yet written; whether a call came by for that.
fn pause_within_call(world: &World, lasts: Duration, stop: &Stop) -> bool {
    let Some(leader) = world.leader() else { return false };
    let pod = world.pod(leader);
    let trapped = world.service.stop_within_call(&pod.agent(), pod.processes().to_vec(), CALL);
    if trapped {
        stop.rest(lasts);
        pod.thaw();
    }
    trapped
}

/// Has the leader overtaken: it is stopped in the midst of a call, others lead and write, and then it goes on to write
/// what it had read before. Whether it came to that.
pub fn overtake(world: &World) -> bool {
    let Some(leader) = world.leader() else { return false };
    let (token, before) = world.service.look(|register| (register.highest(), register.counts()));
    let pod = world.pod(leader);
    if !world.service.stop_within_call(&pod.agent(), pod.processes().to_vec(), CALL) {
        return false;
    }
    let others = |register: &Register| {
        (register.highest() > token && register.counts().accepted > before.accepted + 1).then_some(())
    };
    let overtaken = world.service.until(RECOVERY, others).is_some();
    pod.thaw();
    let late = |register: &Register| (register.counts().stale > before.stale).then_some(());
    overtaken && world.service.until(RECOVERY, late).is_some()
}

fn part(network: &Network, world: &World, fault: &Fault, pod: usize) -> anyhow::Result<()> {
    let servers = world.servers.len();
    // Each pod loses another set of servers, of the same size.
    let cut = |pod: usize, turn: usize, lost: Lost| {
        let mut struck = (0..servers).filter(|server| fault.strikes((server + turn) % servers, servers));
        struck.try_for_each(|server| network.cut(pod, server, lost))
    };
    match fault.cut {
        Cut::Pod(lost) => cut(pod, 0, lost),
        Cut::Each(lost) => (0..world.pods.len()).try_for_each(|pod| cut(pod, pod, lost)),
        Cut::Unplug => network.unplug(pod),
    }
}

/// Waits until all servers have a memory of their own process; whether they have.
fn until_intact(world: &World, stop: &Stop) -> bool {
    let until = Instant::now() + MEMORY;
    while !world.servers.iter().all(|server| is_intact(server, CLUSTER)) {
        if Instant::now() > until || !stop.rest(Duration::from_millis(50)) {
            return false;
        }
    }
    true
}

/// Whether a server's memory of the election `cluster` was given to this very process: both have the same run id.
#[must_use]
pub fn is_intact(server: &Redis, cluster: &str) -> bool {
    let memory = format!("cabloy:{{{cluster}}}:node");
    let run: Option<String> = server.try_run(&["HGET", &memory, "run"]).ok().flatten();
    let info = server.try_run::<redis::InfoDict>(&["INFO", "server"]).ok();
    run.is_some() && run == info.and_then(|info| info.get("run_id"))
}
