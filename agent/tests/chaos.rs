//! Agents on every version of Redis and Valkey, while pods, servers, links and clocks fail around them. Longer: `make chaos`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Mutex;
use std::time::Duration;

use cabloy_tests::chaos::fault::Kind;
use cabloy_tests::chaos::register::Register;
use cabloy_tests::chaos::{self, Config, World, nemesis};
use cabloy_tests::network::{Lost, Network};
use cabloy_tests::redis::{Version, clock};
use cabloy_tests::require;
use cabloy_tests::wait::try_until_blocking;

const AGENT: &str = env!("CARGO_BIN_EXE_cabloy-agent");

/// For what takes milliseconds, or a lease: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

/// One at a time: each has a dozen processes, and faults enough of its own.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn nothing_is_lost_on_redis_6_2() {
    usual_faults(require!(Config::new(AGENT, Version::V6_2)));
}

#[test]
fn nothing_is_lost_on_redis_7_0() {
    usual_faults(require!(Config::new(AGENT, Version::V7_0)));
}

#[test]
fn nothing_is_lost_on_redis_8_2() {
    usual_faults(require!(Config::new(AGENT, Version::V8_2)));
}

#[test]
fn nothing_is_lost_on_valkey_9_1() {
    usual_faults(require!(Config::new(AGENT, Version::Valkey9_1)));
}

/// Of all kinds that leave a majority of memories intact.
fn usual_faults(config: Config) {
    run(&Config { seed: 4, faults_for: Duration::from_secs(15), ..config });
}

#[test]
fn after_the_loss_of_all_memory_somebody_leads_again() {
    let kinds = vec![Kind::AllFlush, Kind::AllEmpty, Kind::AllKill];
    let config = require!(Config::new(AGENT, Version::V7_0));
    let config = Config { faults_for: Duration::from_secs(10), kinds, ..config };
    run(&config);
}

fn run(config: &Config) {
    let _turn = TURN.lock();
    let report = chaos::run(config).unwrap();
    println!("{report}");
    for (kind, reason) in &report.unavailable {
        cabloy_tests::skip::not_run(&format!("{kind} on {}", config.version), reason);
    }
    assert!(report.is_clean(), "{report}");
    assert!(report.terms > 1 && report.injected() > 0, "nothing has happened: {report}");
}

/// Three pods on three servers, and nothing fails by itself.
fn world(config: &Config, network: Option<Network>) -> World {
    let world = World::start(config, network, None).unwrap();
    world.served(SOON).unwrap();
    world
}

/// A leader that was stopped between reading and writing, until others had written.
fn overtaken(config: &Config) -> World {
    let world = world(config, None);
    assert!((0..3).any(|_| nemesis::overtake(&world)), "nobody was overtaken in three rounds");
    world
}

#[test]
fn a_leader_that_was_overtaken_overwrites_nothing() {
    let _turn = TURN.lock();
    let world = overtaken(&require!(Config::new(AGENT, Version::V7_0)));
    world.service().look(|register| {
        assert!(register.counts().stale > 0);
        assert!(register.is_clean(), "{register:?}");
    });
}

#[test]
fn without_the_check_of_the_token_it_does() {
    let _turn = TURN.lock();
    let config = require!(Config::new(AGENT, Version::V7_0));
    let world = overtaken(&Config { guarded: false, ..config });
    world.service().look(|register| assert!(!register.lost().is_empty(), "{register:?}"));
}

/// A leader was elected by two of three servers. One of them forgets, the other stands still: what is left is one that
/// never knew of it and one that does not know any more, for an agent that was not there.
#[test]
fn a_server_that_forgot_does_not_vote() {
    let _turn = TURN.lock();
    require!(Network::check());
    let config = require!(Config::new(AGENT, Version::V7_0));
    let world = world(&config, Some(Network::new(3, 3).unwrap()));
    let (network, service) = (world.network().unwrap(), world.service());
    let [forgets, remembers, _never_knew] = world.servers() else { panic!("three servers") };
    let first = world.leader().unwrap();
    let [second, third] = [1, 2].map(|next| (first + next) % 3);
    world.pod(third).kill();
    for pod in [first, second] {
        network.cut(pod, 2, Lost::Both).unwrap();
    }
    world.pod(first).kill();
    let token = service.look(Register::highest);
    let next = |register: &Register| (register.highest() > token).then(|| register.highest());
    let token = service.until(SOON, next).expect("a leader by two servers");
    {
        let pod = world.pod(second);
        assert!(service.stop_within_call(&pod.agent(), pod.processes().to_vec(), SOON), "it calls");
    }
    remembers.pause();
    forgets.restart_empty();
    world.revive(third).unwrap();

    let before = service.look(|register| register.counts().calls);
    let led = |register: &Register| (register.counts().calls > before + 10).then(|| register.highest());
    let led = service.until(Duration::from_secs(5), led);
    let violations = service.look(|register| register.violations().to_vec());
    assert!(led.is_none(), "one that remembers is no majority: after token {token} came {led:?}; {violations:#?}");

    remembers.resume();
    network.heal().unwrap();
    world.served(SOON).expect("somebody leads again");
    world.pod(second).thaw();
    world.served(SOON).expect("somebody goes on to lead");
    service.look(|register| assert!(register.is_clean(), "{:#?}, lost {:?}", register.violations(), register.lost()));
}

/// The established TCP connections of a pod to a server, as the kernel has them.
fn established(pod: u32, server: SocketAddrV4) -> usize {
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(server.ip().octets()), server.port());
    let table = std::fs::read_to_string(format!("/proc/{pod}/net/tcp")).unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|fields| fields[2] == remote && fields[3] == "01").count()
}

/// Nothing passes any more between a pod and a server, and neither is told. No connection is held for open that is not,
/// also not the one that only listens.
#[test]
fn half_open_connections_are_noticed() {
    let _turn = TURN.lock();
    require!(Network::check());
    let config = require!(Config::new(AGENT, Version::V7_0));
    let world = world(&config, Some(Network::new(3, 3).unwrap()));
    let SocketAddr::V4(server) = world.servers()[0].addr() else { panic!("an address of IPv4") };
    let pod = (world.leader().unwrap() + 1) % 3;
    let [agent, _] = world.pod(pod).processes();
    let connections = |count: usize| {
        try_until_blocking(&format!("{count} connections"), SOON, || established(agent, server) == count).unwrap();
    };
    connections(3);
    world.network().unwrap().cut(pod, 0, Lost::Both).unwrap();
    connections(0);
    world.network().unwrap().heal().unwrap();
    connections(3);
    world.service().look(|register| assert!(register.is_clean(), "{:#?}", register.violations()));
}

/// The clocks of all servers run ahead, so that the lock is free long before its holder knows, and somebody else gets it.
#[test]
fn leases_that_end_too_early_start_nothing_twice() {
    let _turn = TURN.lock();
    let library = require!(clock::library());
    let config = require!(Config::new(AGENT, Version::V7_0));
    // Its holder looks after it every few seconds only: time enough for an agent to start.
    let config = Config { ttl: Duration::from_secs(10), ..config };
    let world = World::start(&config, None, Some(&library)).unwrap();
    world.served(SOON).unwrap();
    let service = world.service();
    let mut successions = 0;
    for hour in 1..=3 {
        let follower = (world.leader().unwrap() + 1) % 3;
        let token = service.look(Register::highest);
        world.pod(follower).kill_agent();
        service.clocks_shift();
        for server in world.servers() {
            server.shift_clock(hour * 3_600_000);
        }
        world.revive(follower).unwrap();
        let next = |register: &Register| (register.highest() > token).then_some(());
        successions += u32::from(service.until(Duration::from_secs(5), next).is_some());
        world.served(SOON).expect("somebody leads");
    }
    assert!(successions > 0, "nobody has got the lock while another held it");
    service.look(|register| assert!(register.is_clean(), "{:#?}, lost {:?}", register.violations(), register.lost()));
}

/// What a leader has set while clocks were ahead would last for as long as that was, when they are set right again.
#[test]
fn a_clock_that_was_an_hour_ahead_locks_nobody_out() {
    const LOCK: &str = "cabloy:{prod/chaos}:lock";
    let _turn = TURN.lock();
    let library = require!(clock::library());
    let config = require!(Config::new(AGENT, Version::V7_0));
    let world = World::start(&config, None, Some(&library)).unwrap();
    world.served(SOON).unwrap();
    let servers = world.servers();
    let shift = |ms: i64| {
        for server in servers {
            server.shift_clock(ms);
        }
    };
    shift(3_600_000);
    let renewed = || servers.iter().all(|server| server.run::<i64>(&["PTTL", LOCK]) > 0);
    try_until_blocking("the lock by the new time", SOON, renewed).unwrap();
    world.served(SOON).unwrap();
    let owners = || servers.iter().map(|server| server.run::<Option<String>>(&["GET", LOCK])).collect::<Vec<_>>();
    let dead = owners();
    world.pod(world.leader().unwrap()).kill();
    shift(0);
    let left: Vec<_> = servers.iter().map(|server| server.run::<i64>(&["PTTL", LOCK])).collect();
    assert!(left.iter().all(|left| *left > 3_000_000), "the locks are as they were: {left:?}");
    // The ticks of that hour have been called; that somebody leads shows in the lock.
    let followed = || owners().iter().zip(&dead).filter(|(owner, dead)| owner.is_some() && owner != dead).count() >= 2;
    try_until_blocking("another leader", chaos::RECOVERY, followed).unwrap();
}
