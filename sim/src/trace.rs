//! What is said in a few words, for a trace that people read.

use std::fmt;

use cabloy_redlock::message::{Body, Reply, Request, Verdict};
use cabloy_redlock::record::Record;

/// A request in a few words.
pub(crate) struct Asked<'a>(pub(crate) &'a Request);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Request::Grant { token, agent, ttl, .. } => write!(f, "grant {token} to {} for {ttl:?}", agent.process),
            Request::Read { token } => write!(f, "read under {token}"),
            Request::Put { token, entries } => {
                write!(f, "put under {token}:")?;
                entries.iter().try_for_each(|entry| {
                    write!(f, " {}{}", if entry.claim { "claim " } else { "" }, Kept(&entry.record))
                })
            }
            Request::Renew { owner, ttl, .. } => write!(f, "renew {owner} for {ttl:?}"),
            Request::Release { owner, publish } => {
                write!(f, "release {owner}{}", if *publish { ", and say so" } else { "" })
            }
            Request::Stand { revision, .. } => write!(f, "revision {revision} stands"),
            Request::Finish { id, result } => {
                write!(f, "finish {id} by {}{}", result.nonce, if result.done { ", done" } else { "" })
            }
            Request::Mark { mark } => write!(f, "mark {mark}"),
            Request::Recall { life } => write!(f, "recall {}:{}", life.run, life.mark),
            Request::Seed { life, promised, records, .. } => {
                write!(f, "seed {}:{} promised {promised}:", life.run, life.mark)?;
                records.iter().try_for_each(|record| write!(f, " {}", Kept(record)))
            }
            Request::Look { ids: Some(ids) } => write!(f, "look at {}", ids.join(" ")),
            Request::Look { ids: None } => write!(f, "look at all"),
            Request::Forget { token, seq, ids } => write!(f, "forget under {token}.{seq}: {}", ids.join(" ")),
        }
    }
}

/// An answer in a few words.
pub(crate) struct Answered<'a>(pub(crate) &'a Reply);

impl fmt::Display for Answered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reply { incarnation, intact, promised, owner, accepted, body, .. } = self.0;
        write!(f, "{}", if *accepted { "yes" } else { "no" })?;
        write!(f, " ({}:{}", incarnation.run, incarnation.mark)?;
        write!(f, "{}, promised {promised}", if *intact { "" } else { " amnesiac" })?;
        match owner {
            Some((owner, Some(left))) => write!(f, ", lock {owner} for {left:?})")?,
            Some((owner, None)) => write!(f, ", lock {owner})")?,
            None => write!(f, ", free)")?,
        }
        match body {
            Body::Empty => Ok(()),
            Body::Records(records) => records.iter().try_for_each(|record| write!(f, " {}", Kept(record))),
            Body::Verdicts(verdicts) => verdicts.iter().try_for_each(|verdict| match verdict {
                Verdict::Stored => write!(f, " stored"),
                Verdict::Overtaken => write!(f, " overtaken"),
                Verdict::Done(record) => write!(f, " done: {}", Kept(record)),
            }),
        }
    }
}

/// A record in a few words.
pub(crate) struct Kept<'a>(pub(crate) &'a Record);

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { id, attempt, token, seq, nonce, results, .. } = self.0;
        write!(f, "[{id} #{attempt} {nonce} at {token}.{seq}")?;
        for result in results {
            write!(f, " {}{}", result.nonce, if result.done { " done" } else { " failed" })?;
        }
        write!(f, "]")
    }
}
