//! Work that the leader does beside its engine.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::election::{Elector, Role, Term};
use crate::shared::Shared;

/// Has `work` done whenever this agent leads, until `stop`. In a term it is begun once; when it returns, its term is over
/// for it. `over` is called after each.
pub async fn while_leading<F: Future<Output = ()>>(
    shared: Arc<Shared>,
    stop: CancellationToken,
    work: impl Fn(Elector, Term) -> F,
    over: impl Fn(),
) {
    let mut electors = shared.elector.subscribe();
    let elector = tokio::select! {
        () = stop.cancelled() => return,
        elector = electors.wait_for(Option::is_some) => elector.ok().and_then(|it| it.clone()),
    };
    let Some(elector) = elector else { return };
    let mut role = elector.watch();
    loop {
        let term = match &*role.borrow_and_update() {
            Role::Leader(term) if !term.lost().is_cancelled() => Some(term.clone()),
            Role::Leader(_) | Role::Follower { .. } => None,
        };
        if let Some(term) = term {
            let lost = term.lost().clone();
            tokio::select! {
                () = stop.cancelled() => return,
                // What is on its way is as good as what comes just before the end of the lease.
                () = lost.cancelled() => {}
                () = work(elector.clone(), term) => {}
            }
            over();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = role.changed() => if changed.is_err() { return },
        }
    }
}
