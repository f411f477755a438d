//! The agent as a whole: starts its parts, decides when it stands, and ends them in order.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::AppStatus;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::aside::ASIDE;
use crate::election::{Elector, Pod, Role, Timing};
use crate::engine::Engine;
use crate::files::Loaded;
use crate::mark::Mark;
use crate::reload::{self, Config, Places};
use crate::server::{self, ListenError};
use crate::shared::{Identity, Shared};
use crate::signing::Signing;
use crate::{export, gate, guard, health, resume, takeover, warm_up};

/// How long a drain may take before it is answered all the same.
const DRAIN: Duration = Duration::from_secs(3);

/// How long calls may go on after SIGTERM. What is open then stays so in the ledger, until its deadline.
const GRACE: Duration = Duration::from_secs(2);

/// How long everything else may take to end.
const END: Duration = Duration::from_secs(2);

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who it is.
    pub identity: Identity,
    /// The folder of its files.
    pub config_dir: PathBuf,
    /// The file of the keys that calls to the app are signed with; none: they are not signed.
    pub signing_key_file: Option<PathBuf>,
    /// The folder of the passwords that the app has too; there need be none.
    pub secrets_dir: PathBuf,
    /// The folder where the app's processes are told that the pod drains; none: they are not.
    pub state_dir: Option<PathBuf>,
    /// Where `/status` and so on are answered.
    pub listen: SocketAddr,
    /// The port on 127.0.0.1 where `/drain` is answered.
    pub control_port: u16,
}

/// An agent whose ports are taken.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    status: TcpListener,
    control: TcpListener,
}

impl Agent {
    /// Takes the ports.
    ///
    /// # Errors
    /// One cannot be had.
    pub async fn bind(options: Options) -> Result<Self, ListenError> {
        let status = server::listen(options.listen).await?;
        let control = server::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, options.control_port))).await?;
        Ok(Self { options, status, control })
    }

    /// Works until `stop`, and then ends in order: no new ticks, no lease, no calls.
    pub async fn run(self, stop: CancellationToken) {
        let Self { options, status, control } = self;
        let (parts, calls, electors) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (end, end_election) = (CancellationToken::new(), CancellationToken::new());
        let (config, config_seen) = watch::channel(Config::default());
        let (signing, signing_seen) = watch::channel(Signing::default());
        let (health, health_seen) = watch::channel(AppStatus::default());
        let (app, app_seen) = watch::channel(None);
        let shared = Shared::new(options.identity, config_seen, signing_seen, health_seen);
        let mark = Mark::in_folder(options.state_dir.as_deref());
        let drain = Drain { shared: Arc::clone(&shared), released: watch::Sender::new(false), mark: mark.clone() };

        let places =
            Places { dir: options.config_dir, signing_key: options.signing_key_file, secrets: options.secrets_dir };
        parts.spawn(reload::watch_files(places, config, signing, end.clone()));
        let (worker, worker_seen) = watch::channel(None);
        parts.spawn(health::watch_app(app_seen, health, worker, end.clone()));
        parts.spawn(warm_up::keep_warm(Arc::clone(&shared), worker_seen, end.clone()));
        parts.spawn(gate::watch_gate(Arc::clone(&shared), end.clone()));
        parts.spawn(export::export_spans(Arc::clone(&shared), end.clone()));
        parts.spawn(server::serve_status(status, Arc::clone(&shared), end.clone()));
        parts.spawn(server::serve_control(control, drain.clone(), end.clone()));
        parts.spawn(follow_files(Arc::clone(&shared), app, electors.clone(), end_election.clone(), end.clone()));
        parts.spawn(guard::presence::show_presence(Arc::clone(&shared), end.clone()));
        parts.spawn(guard::guard_schedules(Arc::clone(&shared), end.clone()));
        parts.spawn(resume::ask_again(Arc::clone(&shared), calls.clone(), end.clone()));
        parts.spawn(takeover::take_over_schedules(Arc::clone(&shared), end.clone()));
        parts.spawn(lead(Arc::clone(&shared), drain.released.clone(), calls.clone(), end.clone()));

        stop.cancelled().await;
        tracing::info!("ending");
        drain.resign().await;
        calls.close();
        if tokio::time::timeout(GRACE, calls.wait()).await.is_err() {
            tracing::warn!(calls = calls.len(), "calls are left open; their deadlines hold");
        }
        end_election.cancel();
        end.cancel();
        parts.close();
        electors.close();
        let ended = async { tokio::join!(parts.wait(), electors.wait()) };
        if tokio::time::timeout(END, ended).await.is_err() {
            tracing::warn!("not all parts have ended in time");
        }
        // In a pod that ends the app has ended before. Elsewhere it may go on, and nobody else would tell it.
        mark.clear();
    }
}

/// Takes the pod out of service, for good.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
    /// Whether, while draining, this agent has given back what it led by.
    released: watch::Sender<bool>,
    mark: Mark,
}

impl Drain {
    /// Tells the app's processes that the pod is about to end, and resigns.
    pub async fn drain(&self) {
        self.mark.set();
        self.resign().await;
    }

    /// Returns when the agent neither leads nor stands; that takes a round to Redis, and is bounded.
    async fn resign(&self) {
        if !self.shared.draining.send_replace(true) {
            tracing::info!("draining");
        }
        let mut released = self.released.subscribe();
        if tokio::time::timeout(DRAIN, released.wait_for(|released| *released)).await.is_err() {
            tracing::warn!("the lease could not be given back in time; it expires");
        }
    }
}

/// Brings what the files say to app and election.
async fn follow_files(
    shared: Arc<Shared>,
    app: watch::Sender<Option<App>>,
    electors: TaskTracker,
    end_election: CancellationToken,
    end: CancellationToken,
) {
    let mut config = shared.config.clone();
    loop {
        if let Some(loaded) = config.borrow_and_update().loaded.clone() {
            let now = Some(App::new(&loaded.file.app));
            app.send_if_modified(|app| {
                *app != now && {
                    *app = now;
                    true
                }
            });
            follow_election(&shared, &loaded, &electors, &end_election);
        }
        tokio::select! {
            () = end.cancelled() => return,
            changed = config.changed() => if changed.is_err() { return },
        }
    }
}

fn follow_election(shared: &Shared, loaded: &Loaded, electors: &TaskTracker, end_election: &CancellationToken) {
    let timing = Timing { ttl: Duration::from_millis(loaded.file.election.ttl_ms) };
    match shared.elector() {
        Some(elector) => elector.reconfigure(loaded.masters.clone(), timing),
        None if loaded.masters.is_empty() => {}
        None => {
            let Identity { pod: name, uid, .. } = shared.identity.clone();
            let pod = Pod { name, uid };
            let masters = loaded.masters.clone();
            let elector = Elector::spawn(electors, end_election.clone(), pod, masters, timing, &loaded.file.cluster);
            shared.elector.send_replace(Some(elector));
        }
    }
    if let Some(elector) = shared.elector() {
        elector.floor(loaded.file.floor.token);
    }
}

/// Stands when it should, and works while it leads.
async fn lead(shared: Arc<Shared>, released: watch::Sender<bool>, calls: TaskTracker, end: CancellationToken) {
    let mut draining = shared.draining.subscribe();
    let mut electors = shared.elector.subscribe();
    let elector = tokio::select! {
        () = end.cancelled() => return,
        elector = electors.wait_for(Option::is_some) => elector.ok().and_then(|it| it.clone()),
        _ = draining.wait_for(|draining| *draining) => None,
    };
    let Some(elector) = elector else {
        released.send_replace(true);
        return;
    };
    let (mut config, mut app) = (shared.config.clone(), shared.app.clone());
    let mut role = elector.watch();
    let mut engine: Option<(CancellationToken, tokio::task::JoinHandle<()>)> = None;
    let mut aside = shared.aside.subscribe();
    let mut back_at = None;
    loop {
        config.mark_unchanged();
        app.mark_unchanged();
        let back = aside.borrow_and_update().then(|| *back_at.get_or_insert_with(|| Instant::now() + ASIDE));
        let candidacy = shared.candidacy();
        if !candidacy.stands
            && let Some((hold, work)) = engine.take()
        {
            // First let the claims on their way come through: in doubt they would be nobody's until their deadline.
            hold.cancel();
            let _ = work.await;
        }
        if *draining.borrow_and_update() {
            elector.resign().await;
            released.send_replace(true);
            return;
        }
        elector.stand(candidacy);
        let term = match &*role.borrow_and_update() {
            Role::Leader(term) if candidacy.stands && engine.is_none() => Some(term.clone()),
            _ => None,
        };
        if let Some(term) = term {
            tracing::info!(token = term.token(), "leading");
            shared.metrics.transitions.inc();
            let hold = CancellationToken::new();
            let ledger = elector.ledger().measured(shared.metrics.ledger.clone());
            let work = Engine::run(Arc::clone(&shared), ledger, term, calls.clone(), hold.clone());
            engine = Some((hold, tokio::spawn(work)));
        }
        tokio::select! {
            () = end.cancelled() => break,
            Ok(()) = config.changed() => {}
            Ok(()) = app.changed() => {}
            Ok(()) = draining.changed() => {}
            Ok(()) = aside.changed() => {}
            () = tokio::time::sleep_until(back.unwrap_or_else(Instant::now)), if back.is_some() => {
                back_at = None;
                shared.aside.send_replace(false);
            }
            changed = role.changed() => if changed.is_err() { break },
            () = ended(&mut engine) => {
                tracing::info!("leading no more");
                engine = None;
                // Until the elector says so too: it would be given another engine for the same term.
                let _ = role.wait_for(|role| !matches!(role, Role::Leader(term) if term.lost().is_cancelled())).await;
            }
        }
    }
    if let Some((hold, work)) = engine {
        hold.cancel();
        let _ = work.await;
    }
}

/// Returns when the engine has ended; never if there is none.
async fn ended(engine: &mut Option<(CancellationToken, tokio::task::JoinHandle<()>)>) {
    match engine {
        Some((_, work)) => {
            if let Err(error) = work.await {
                tracing::error!(%error, "the engine broke");
            }
        }
        None => std::future::pending().await,
    }
}
