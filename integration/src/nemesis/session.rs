//! Runs one after the other. A world is used again while it does for the next scenario and the last run left it well.

use super::run::{Verdict, needs, run};
use super::scenario::{Need, Scenario};
use super::world::World;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Where the scenario files are.
pub fn scenario_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("nemesis/scenarios")
}

/// A scenario by the name of its file.
///
/// # Errors
/// When there is no such file or it is not understood.
pub fn scenario(name: &str) -> Result<Scenario, String> {
    let path = scenario_dir().join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Scenario::parse(name, &text)
}

/// The names of all scenarios, in order.
pub fn names() -> Vec<String> {
    let files = std::fs::read_dir(scenario_dir()).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        files.filter_map(|f| Some(f.file_name().to_str()?.strip_suffix(".txt")?.to_owned())).collect();
    names.sort();
    names
}

/// Runs and the world they happen in.
#[derive(Debug, Default)]
pub struct Session {
    world: Option<World>,
}

impl Session {
    /// Play a scenario. A world that a run did not leave well is not used again, and its files are kept; of one that goes on
    /// behind a run that did not hold, the logs.
    ///
    /// # Errors
    /// When the run could not be judged. That the cluster does not come back is among the reasons.
    pub fn play(&mut self, scenario: &Scenario, seed: u64) -> Result<Verdict, String> {
        let wanted = needs(scenario);
        let fits = |world: &World| {
            let has = world.needs();
            (has.asynchronous, has.available, has.tight) == (wanted.asynchronous, wanted.available, wanted.tight)
                && has.disks >= wanted.disks
                && has.etcd_disks >= wanted.etcd_disks
                && has.clocks >= wanted.clocks
        };
        if !self.world.as_ref().is_some_and(fits) {
            // First the old one: both have the same addresses.
            drop(self.world.take());
        }
        let mut world = match self.world.take() {
            Some(world) => world,
            None => attempt(|| Ok(World::start(wanted)))?,
        };
        let result = attempt(|| run(&mut world, scenario, seed));
        if let Some(verdict) = result.as_ref().ok().filter(|verdict| verdict.left_well()) {
            if !verdict.broken.is_empty() {
                eprintln!("{} seed {seed}: the logs are kept in {}", scenario.name, keep_logs(&world, scenario, seed));
            }
            self.world = Some(world).filter(|_| !scenario.needs.contains(&Need::OwnWorld));
        } else {
            world.scratch().keep_files();
            let at = world.scratch().path().display();
            eprintln!("{} seed {seed}: the files are kept in {at}", scenario.name);
        }
        result
    }
}

/// Copy what everything has logged so far, as the world goes on; where to.
fn keep_logs(world: &World, scenario: &Scenario, seed: u64) -> String {
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nemesis").join(format!("{}-{seed}", scenario.name));
    let copied = std::fs::create_dir_all(&to).and_then(|()| {
        for entry in std::fs::read_dir(world.scratch().path().join("log"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    });
    copied.map_or_else(|e| format!("{}, not all of them: {e}", to.display()), |()| to.display().to_string())
}

/// What panics has not held, and says why.
pub(super) fn attempt<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    })
}
