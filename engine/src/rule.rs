//! The rules that the engine's promises rest on, each by name, so that a simulator can take one away and see that it
//! notices.
//!
//! Without the feature `controls` no rule can be taken away: [`Rules`] is empty then, and asking it costs nothing.

cabloy_redlock::rules! {
    /// A rule of the engine.
    pub enum Rule {
        // Of claims and results.
        /// Nothing is called whose claim a majority has not taken.
        ClaimFirst,
        /// Nothing is called after its deadline, or so near it that it may have passed by another clock: another attempt may
        /// have begun.
        InTime,
        /// Of what was claimed and is not called it is recorded that it has not begun.
        Disown,
        /// Of what was called that is never recorded.
        DisownUncalled,
        /// No other attempt starts before there is a result, or before the deadline; that a lease has ended is no reason.
        Deadline,
        /// A deadline says nothing before the ledger was asked once more.
        LookFirst,
        /// How an attempt ended says nothing of any other attempt.
        ByNonce,
        /// Who called records the result, whoever leads by then. Kept by the driver.
        RecordAlways,
        /// Nobody goes by a result that was read before a majority has it. Of gates it is kept by the driver.
        Confirm,
        /// A reading that is older than what is known undoes nothing.
        NewestKnown,
        /// The operator's word on a pod is about what the pod had claimed until then.
        EndedSince,

        // Of what an earlier process of the agent has called.
        /// An agent that was started again asks its app what became of the calls of the process before.
        AskAgain,
        /// Only an app that remembers runs is asked what became of one.
        AskWhoRemembers,
        /// It is asked, and not called: what it has forgotten it does not begin again.
        AskOnly,

        // Of schedules.
        /// No tick is run before it is due by the masters' time.
        Due,
        /// A new leader goes on where the memory of the schedule ends.
        LowWater,
        /// A record goes only when the memory that says that its run is over is saved.
        MemoryFirst,
        /// A run that is over by the memory of its schedule is not taken up again, whatever is left of its record.
        OverIsOver,
        /// Ticks that must not overlap go one after another.
        Turn,
        /// A tick is run no later than the window allows.
        Window,
        /// An edit of a schedule takes effect in the term, as soon as the files are there.
        EditAtOnce,
        /// What runs and what is claimed goes on when its schedule is edited.
        EditInPlace,
        /// Ticks of a timetable are run from when it is in force, and so after a suspension.
        InForce,

        // Of startup tasks and gates.
        /// An agent runs the tasks of its own revision.
        OwnRevision,
        /// A task waits for those that it comes after.
        TaskOrder,
        /// What the operator has mirrored is done.
        Mirror,
        /// A gate that is open stays so.
        Latch,
        /// A gate waits for its tasks.
        GateWaits,
        /// No schedule is run on a pod whose gate is shut.
        GateFirst,
    }
}
