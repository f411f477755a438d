//! Asks the agents how they are: `/status` of each pod, again and again, a few at a time.
//!
//! Reconciliations read the last answers; one that differs in more than its ticks asks for a reconciliation at once.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cabloy_crds::{
    agent_status::{AgentStatus, StartupState},
    names::{AGENT_CONTAINER, AGENT_PORT},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{ResourceExt as _, runtime::reflector::Store};
use rand::RngExt as _;
use tokio::{
    net::TcpStream,
    sync::{Notify, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::names::{BOOT, CLUSTER, CONFIG_SYNCED, SECRETS};

/// How often an agent is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long an agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How many agents are asked at the same time.
const CONCURRENCY: usize = 32;

/// The longest answer: 500 schedules with 10 results each take about 1 MiB.
const MAX_ANSWER: usize = 4 << 20;

/// A pod with our part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Name of its resource.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// Whether a node has taken it.
    pub scheduled: bool,
    /// Whether it is about to end.
    pub terminating: bool,
    /// The image of its agent, if it has one.
    pub agent_image: Option<String>,
    /// Whether the agent's container runs.
    pub agent_runs: bool,
    /// The hash of the files that its kubelet was last asked to bring.
    pub synced: Option<String>,
    /// Since when there have been the passwords that its template was last rolled for.
    pub secrets: Option<String>,
    /// Which of its containers run, less those of init, and since when, in whole seconds.
    pub started: BTreeMap<String, Timestamp>,
    /// The boot map that its app reads.
    pub boot: Option<String>,
}

impl AgentPod {
    /// Reads a pod of our store; `None` if it has ended for good.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        if status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"))
        {
            return None;
        }
        let agent = spec
            .and_then(|spec| spec.init_containers.as_ref())
            .and_then(|containers| containers.iter().find(|container| container.name == AGENT_CONTAINER));
        let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            cluster: pod.labels().get(CLUSTER).cloned().unwrap_or_default(),
            namespace: pod.namespace().unwrap_or_default(),
            ip: status.and_then(|status| status.pod_ip.as_ref()).and_then(|ip| ip.parse().ok()),
            scheduled: spec.is_some_and(|spec| spec.node_name.is_some()),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            agent_image: agent.and_then(|agent| agent.image.clone()),
            agent_runs: status.and_then(|status| status.init_container_statuses.as_ref()).is_some_and(|statuses| {
                statuses.iter().any(|container| {
                    container.name == AGENT_CONTAINER
                        && container.state.as_ref().is_some_and(|state| state.running.is_some())
                })
            }),
            synced: pod.annotations().get(CONFIG_SYNCED).cloned(),
            secrets: pod.annotations().get(SECRETS).cloned(),
            started: containers
                .filter_map(|container| Some((container.name.clone(), started_at(container)?)))
                .collect(),
            boot: pod.annotations().get(BOOT).cloned(),
        })
    }

    /// Where its agent answers, if it may.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.agent_runs.then_some(SocketAddr::new(self.ip?, AGENT_PORT))
    }
}

fn started_at(container: &ContainerStatus) -> Option<Timestamp> {
    Some(container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)
}

/// What came of asking an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// It answered.
    Answered(Arc<AgentStatus>),
    /// It did not, and why.
    Failed(String),
}

impl Report {
    /// The answer, if there is one.
    #[must_use]
    pub fn status(&self) -> Option<&AgentStatus> {
        match self {
            Self::Answered(status) => Some(status),
            Self::Failed(_) => None,
        }
    }

    /// Whether `other` says more than that time has passed.
    fn differs(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Answered(one), Self::Answered(other)) => essence(one) != essence(other),
            (Self::Failed(one), Self::Failed(other)) => one != other,
            _ => true,
        }
    }
}

/// A status without what changes at every tick.
fn essence(status: &AgentStatus) -> AgentStatus {
    let mut essence = status.clone();
    // One that waits has no ticks.
    essence.schedules.retain(|schedule| schedule.waits_for.is_some());
    if let Some(election) = &mut essence.election {
        // Agents that do not lead count up what they see; the leader's own token is what matters.
        if !election.leading {
            election.token = None;
        }
    }
    if let Some(guard) = &mut essence.guard {
        guard.trimmed = 0;
    }
    for task in &mut essence.startups {
        task.deadline = None;
        if task.state == StartupState::Pending {
            task.message.clear();
        }
    }
    essence
}

struct Known {
    report: Option<Report>,
    due: Instant,
    asked: bool,
}

/// The agents, and what they last said.
#[derive(Clone, Default)]
pub struct Agents {
    known: Arc<Mutex<HashMap<String, Known>>>,
    wake: Arc<Notify>,
}

impl Agents {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // Every change under this lock is one assignment, so that a panic leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the agents of `pods` last said, by the pod's UID.
    #[must_use]
    pub fn reports(&self, pods: &[AgentPod]) -> BTreeMap<String, Report> {
        let known = self.known();
        pods.iter().filter_map(|pod| Some((pod.uid.clone(), known.get(&pod.uid)?.report.clone()?))).collect()
    }

    /// Pods have changed: look who is there to be asked.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Asks the agents of `pods` now.
    pub async fn ask_now(&self, pods: &[AgentPod]) {
        use futures::StreamExt as _;
        futures::stream::iter(pods.iter().filter_map(|pod| Some((pod, pod.address()?))))
            .for_each_concurrent(CONCURRENCY, |(pod, address)| async move {
                let report = ask(address).await;
                self.take_in(&pod.uid, report);
            })
            .await;
    }

    /// Remembers a report; whether it says something new.
    fn take_in(&self, uid: &str, report: Report) -> bool {
        let jitter = INTERVAL.mul_f64(rand::rng().random_range(0.8..1.2));
        let mut known = self.known();
        let known =
            known.entry(uid.to_owned()).or_insert_with(|| Known { report: None, due: Instant::now(), asked: false });
        let differs = known.report.as_ref().is_none_or(|before| before.differs(&report));
        known.report = Some(report);
        known.due = Instant::now() + jitter;
        known.asked = false;
        differs
    }

    /// The pods that are to be asked now; they count as asked.
    fn due(&self, pods: &[AgentPod]) -> Vec<(AgentPod, SocketAddr)> {
        let now = Instant::now();
        let mut known = self.known();
        known.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
        pods.iter()
            .filter_map(|pod| {
                let address = pod.address()?;
                let known =
                    known.entry(pod.uid.clone()).or_insert_with(|| Known { report: None, due: now, asked: false });
                if known.asked || known.due > now {
                    return None;
                }
                known.asked = true;
                Some((pod.clone(), address))
            })
            .collect()
    }

    /// Asks all agents of `pods` in turn until `shutdown`; `changed` is told whose report says something new.
    pub async fn run(
        self,
        pods: Store<Pod>,
        changed: impl Fn(&AgentPod) + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) {
        let changed = Arc::new(changed);
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let mut asking = JoinSet::new();
        let mut clock = tokio::time::interval(Duration::from_millis(500));
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = clock.tick() => {}
                () = self.wake.notified() => {}
            }
            while asking.try_join_next().is_some() {}
            let present: Vec<_> = pods.state().iter().filter_map(|pod| AgentPod::of(pod)).collect();
            for (pod, address) in self.due(&present) {
                let (agents, permits, changed) = (self.clone(), permits.clone(), changed.clone());
                asking.spawn(async move {
                    // The semaphore is never closed.
                    let Ok(_permit) = permits.acquire().await else { return };
                    let report = ask(address).await;
                    if agents.take_in(&pod.uid, report) {
                        changed(&pod);
                    }
                });
            }
        }
        asking.shutdown().await;
    }
}

/// Why an agent did not answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("no HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("no request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("it answers {0}")]
    Answer(StatusCode),
    #[error("its answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

async fn ask(address: SocketAddr) -> Report {
    match tokio::time::timeout(TIMEOUT, fetch(address)).await {
        Ok(Ok(status)) => Report::Answered(Arc::new(status)),
        Ok(Err(error)) => Report::Failed(error.to_string()),
        Err(_) => Report::Failed(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn fetch(address: SocketAddr) -> Result<AgentStatus, AskError> {
    let stream = TcpStream::connect(address).await.map_err(AskError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/status").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Answer(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(AskError::Body)?;
        Ok(serde_json::from_slice(&body.to_bytes())?)
    };
    // The connection must be driven while the answer is read; its own end says nothing that the answer does not.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        result = &mut connection => match result {
            Ok(()) => exchange.await,
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use cabloy_crds::agent_status::ElectionStatus;

    use super::*;

    fn report(status: &AgentStatus) -> Report {
        Report::Answered(Arc::new(status.clone()))
    }

    #[test]
    fn a_new_leader_is_news_and_a_seen_token_is_not() {
        let mut status = AgentStatus {
            election: Some(ElectionStatus { token: Some(1), ..Default::default() }),
            ..Default::default()
        };
        let before = report(&status);
        if let Some(election) = &mut status.election {
            election.token = Some(2);
        }
        assert!(!before.differs(&report(&status)));
        if let Some(election) = &mut status.election {
            election.leading = true;
        }
        assert!(before.differs(&report(&status)));
        assert!(before.differs(&Report::Failed("no connection".into())));
    }

    #[test]
    fn only_agents_that_run_and_have_an_address_are_asked() {
        let agents = Agents::default();
        let pod = AgentPod {
            name: "web-0".into(),
            uid: "u".into(),
            cluster: "shop".into(),
            namespace: "prod".into(),
            ip: Some(IpAddr::from([127, 0, 0, 1])),
            scheduled: true,
            terminating: false,
            agent_image: Some("agent:1".into()),
            agent_runs: true,
            synced: None,
            secrets: None,
            started: BTreeMap::new(),
            boot: None,
        };
        let waiting = AgentPod { uid: "v".into(), agent_runs: false, ..pod.clone() };
        assert_eq!(agents.due(&[pod.clone(), waiting]).len(), 1);
        assert!(agents.due(std::slice::from_ref(&pod)).is_empty(), "it is being asked");
        agents.take_in("u", Report::Failed("no connection".into()));
        assert!(agents.due(&[pod]).is_empty(), "its turn comes later");
        assert_eq!(agents.known().len(), 1, "pods that are gone are forgotten");
    }
}
