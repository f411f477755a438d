//! People who edit schedules while all goes on.

use cabloy_crds::files::AgentFile;

use super::scene;
use crate::world::World;

/// No more schedules than this.
const MANY: usize = 4;

impl World {
    /// Somebody edits a schedule, suspends it or has it go on, takes it out or puts one in. Every timetable is another one,
    /// so that a tick tells of which it is.
    pub(super) fn edit(&mut self) {
        let mut file = AgentFile::clone(&self.file);
        let ttl_ms = file.election.ttl_ms;
        self.edits += 1;
        let every = scene::every(ttl_ms, &mut self.dice) + self.edits;
        let at = self.dice.place(file.schedules.len());
        let (what, name) = match self.dice.below(5) {
            0 if file.schedules.len() < MANY => {
                let new = scene::schedule(self.edits + 10, ttl_ms, &mut self.dice);
                let mut schedule = self.taken_out.pop().unwrap_or(new);
                schedule.every_ms = Some(every);
                let name = schedule.name.clone();
                file.schedules.push(schedule);
                ("puts in", name)
            }
            1 if file.schedules.len() > 1 => {
                let mut schedule = file.schedules.remove(at);
                // Of what is in no file nobody remembers what was asked for.
                schedule.triggers.clear();
                let name = schedule.name.clone();
                self.taken_out.push(schedule);
                self.watch.taken_out(&name);
                ("takes out", name)
            }
            kind => {
                let schedule = &mut file.schedules[at];
                schedule.every_ms = Some(every);
                schedule.suspend = kind < 3 && !schedule.suspend;
                (if schedule.suspend { "suspends" } else { "edits" }, schedule.name.clone())
            }
        };
        self.say(|| format!("somebody {what} {name}"));
        let since = self.now_by_median();
        let schedule = file.schedules.iter().find(|it| it.name == name);
        let every = schedule.filter(|it| !it.suspend).and_then(|it| it.every_ms);
        self.watch.edited(&name, since, every);
        self.publish(file);
    }
}
