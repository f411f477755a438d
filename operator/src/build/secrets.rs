//! Passwords that have changed. The operator cannot read Secrets; agents see when kubelet brings other ones into their pod,
//! and what has started before then runs on those that were.

use jiff::Timestamp;

use super::agent_file::is_newest;
use crate::{agents::Report, dereference::Found, workload::Live};

/// Since when there have been passwords that pods of a workload did not start with; of several pods the latest.
///
/// Just those of the template as it stands count, by its revision and by what it says of passwords itself: all others are
/// being replaced, whether or not their end and the new ones have been seen yet. So pods are rolled once for a change, and
/// not those that started after it.
pub(super) fn changed_under(live: &Live, container: &str, found: &Found) -> Option<Timestamp> {
    let is_present = |hash: &str| {
        let mut revisions = found.revisions.iter().filter(|it| it.owner == live.uid() && it.hash == hash);
        revisions.any(|revision| is_newest(found, revision))
    };
    let pods = found.pods.iter().filter(|pod| !pod.terminating && pod.secrets.as_deref() == live.secrets());
    let changed = pods.filter_map(|pod| {
        let status = found.reports.get(&pod.uid).and_then(Report::status)?;
        let (brought, started) = (status.config.secrets_at?, pod.started.get(container)?);
        // Kubelet's clock tells both, and of the start in whole seconds.
        (is_present(&status.revision.hash) && started.as_second() < brought.as_second()).then_some(brought)
    });
    changed.max()
}
