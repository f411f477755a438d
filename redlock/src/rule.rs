//! The rules that safety rests on, each by name, so that a simulator can take one away and see that it notices.
//!
//! Without the feature `controls` no rule can be taken away: [`Rules`] is empty then, and asking it costs nothing.

/// Makes the enum `Rule`, and `Rules`, which says which of them hold; for this crate and those on top of it. The crate has
/// the feature `controls` as well.
#[macro_export]
macro_rules! rules {
    ($(#[$about:meta])* pub enum Rule { $($(#[$what:meta])* $rule:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $($(#[$what])* $rule,)*
        }

        #[cfg(feature = "controls")]
        impl Rule {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$rule,)*];
        }

        /// Which rules hold: all, unless a simulator says otherwise.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct Rules {
            /// One bit for each rule that is taken away.
            #[cfg(feature = "controls")]
            without: u64,
        }

        impl Rules {
            /// All but these.
            #[cfg(feature = "controls")]
            #[must_use]
            pub fn without(rules: &[Rule]) -> Self {
                rules.iter().fold(Self::default(), |all, rule| all.less(*rule))
            }

            /// These, but for one more.
            #[cfg(feature = "controls")]
            #[must_use]
            pub fn less(self, rule: Rule) -> Self {
                Self { without: self.without | 1 << (rule as u64) }
            }

            /// Whether this one holds.
            #[must_use]
            pub fn hold(self, rule: Rule) -> bool {
                #[cfg(feature = "controls")]
                {
                    self.without & 1 << (rule as u64) == 0
                }
                #[cfg(not(feature = "controls"))]
                {
                    _ = rule;
                    true
                }
            }
        }
    };
}

rules! {
    /// A rule of the protocol.
    pub enum Rule {
        // Kept by nodes.
        /// A node whose memory is not of its present life has no say.
        Amnesia,
        /// PROTOCOL 1: a token is granted only above the promise.
        StrictPromise,
        /// PROTOCOL 1: of other processes in the pod only the lock that was seen is taken over.
        FormerSeen,
        /// PROTOCOL 2: a read succeeds only under the reader's own promise.
        FencedRead,
        /// PROTOCOL 3: a put succeeds only under the writer's own promise.
        FencedPut,
        /// PROTOCOL 3: an older write does not undo a newer one.
        PutOrder,
        /// PROTOCOL 3, 4: the order of writes is that of numbers, token before order; kept by agents as well.
        BallotOrder,
        /// PROTOCOL 4: a put does not remove results.
        StickyResults,
        /// PROTOCOL 5: a claim is refused where another attempt is done.
        ClaimRefusal,
        /// PROTOCOL 7d: an intact node takes no seed.
        SeedAmnesiacOnly,
        /// PROTOCOL 7d: a seed is for one run id and mark.
        SeedOneLife,

        // Kept by agents, about ballots.
        /// PROTOCOL 2: a leader has read a majority that granted.
        ReadRound,
        /// PROTOCOL 2: a grant that arrives after a round was sent has no part in it.
        LateGrant,
        /// PROTOCOL 2: nobody leads by what only a minority may know.
        WriteBack,
        /// PROTOCOL 4: a merge keeps the results of both.
        UnionOfResults,
        /// PROTOCOL 5: a claim starts once a majority has acknowledged it.
        ClaimMajority,
        /// PROTOCOL 6: a result counts after a second round.
        FinishTwice,
        /// PROTOCOL 7b: a seed is made of what nodes say that have promised the seeder's token.
        SeedFence,
        /// PROTOCOL 7c: a seed has what is in flight.
        SeedInFlight,
        /// PROTOCOL 8: all nodes are confirmed before the first is seeded.
        BootstrapConfirm,
        /// PROTOCOL 8: not without all nodes.
        BootstrapAll,
        /// PROTOCOL 9: what a life that is gone acknowledged does not count.
        DeadLives,
        /// No agent proposes a token twice.
        FreshToken,
        /// One write of a record at a time.
        OneWrite,

        // Kept by agents, about clocks.
        /// A lease counts from before its request was sent.
        LeaseFromSending,
        /// A lease is held while a majority of all nodes hold it, not of those that granted once.
        LeaseMajority,
        /// A lease is a little shorter than the life of the lock.
        Drift,
        /// A node without memory rests for a ttl.
        Rest,
        /// A lease is dropped when a node's clock and ours part.
        ClockCheck,
        /// A node whose clock is far from the others' does not count.
        Skew,
        /// The time of day is never ahead of the median of all nodes.
        MedianTime,

        // Kept by agents, for somebody to lead.
        /// A candidate waits for a lock only if one owner holds a majority.
        WaitForMajority,
        /// A try that failed gives back what it got.
        ReleasePartial,
        /// A lock, or the mark of who stands, lasts for its ttl and no longer, also where a clock was set back.
        Cut,
    }
}
