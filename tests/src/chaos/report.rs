//! What a run came to.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::time::Duration;

use super::fault::Kind;
use super::register::Counts;
use crate::redis::Version;
use crate::skip::Unavailable;

/// What became of the faults of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Injected {
    /// Carried out.
    pub done: u32,
    /// Not carried out, since a server had not yet been given its memory back.
    pub withheld: u32,
    /// Not carried out, since no call came by.
    pub missed: u32,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// The version of the servers.
    pub version: Version,
    /// What repeats the faults.
    pub seed: u64,
    /// How long faults were injected.
    pub faults_for: Duration,
    /// By kind, how many.
    pub faults: BTreeMap<Kind, Injected>,
    /// Kinds that this machine cannot have, and why.
    pub unavailable: Vec<(Kind, Unavailable)>,
    /// How many terms had a call.
    pub terms: usize,
    /// By pod, in how many of them it led.
    pub leaders: BTreeMap<String, usize>,
    /// From the last call of a leader to the first of the next, in order of length.
    pub gaps: Vec<Duration>,
    /// How many ticks reached an app.
    pub ticks: usize,
    /// Calls, elements written, and what was refused or would have been.
    pub counts: Counts,
    /// From the end of all faults to the second call that was done.
    pub recovery: Option<Duration>,
    /// Elements that were acknowledged and are missing.
    pub lost: Vec<String>,
    /// What must not have happened, and did.
    pub violations: Vec<String>,
    /// Where logs and history are, if there was something to look for.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// Whether nothing was lost or violated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.violations.is_empty()
    }

    /// How many faults were carried out.
    #[must_use]
    pub fn injected(&self) -> u32 {
        self.faults.values().map(|injected| injected.done).sum()
    }

    fn gap(&self, percent: usize) -> Duration {
        let index = (self.gaps.len() * percent / 100).min(self.gaps.len().saturating_sub(1));
        self.gaps.get(index).copied().unwrap_or_default()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "chaos on {}, seed {}", self.version, self.seed)?;
        writeln!(f, "  faults: {} in {:.0?}", self.injected(), self.faults_for)?;
        for (kind, injected) in &self.faults {
            write!(f, "    {:<16}{:>5}", kind.to_string(), injected.done)?;
            for (count, why) in [
                (injected.withheld, "not done: a server had not got its memory back"),
                (injected.missed, "not done: no call came by"),
            ] {
                if count > 0 {
                    write!(f, "   {count} {why}")?;
                }
            }
            writeln!(f)?;
        }
        for (kind, reason) in &self.unavailable {
            writeln!(f, "    {:<16}    -   {reason}", kind.to_string())?;
        }
        let leaders: Vec<_> = self.leaders.iter().map(|(pod, terms)| format!("{pod} {terms}")).collect();
        writeln!(f, "  terms: {} ({})", self.terms, leaders.join(", "))?;
        let (p50, max) = (self.gap(50), self.gap(100));
        writeln!(f, "  between two leaders: p50 {p50:.2?}, max {max:.2?}")?;
        let Counts { calls, accepted, stale } = self.counts;
        writeln!(f, "  ticks: {} in {calls} calls; {accepted} elements written, {stale} stale", self.ticks)?;
        match self.recovery {
            Some(recovery) => writeln!(f, "  recovered {recovery:.2?} after the last fault")?,
            None => writeln!(f, "  did not recover")?,
        }
        writeln!(f, "  violations: {}, elements lost: {}", self.violations.len(), self.lost.len())?;
        // All of them are in the history.
        for violation in self.violations.iter().take(10) {
            writeln!(f, "    {violation}")?;
        }
        for element in self.lost.iter().take(10) {
            writeln!(f, "    lost: {element}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "  logs and history: {}", kept.display())?;
        }
        Ok(())
    }
}
