//! What `pg_control` says of a data directory, read as it is or, where its layout is not known, by `pg_controldata`.

use super::Env;
use super::tool;
use crate::api::PostgresState;
use crate::fsm::control_file::{self, ControlFile};
use cluster::{Lsn, TimelineId};
use std::path::Path;
use std::time::Duration;

/// The fields of pg_control that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) system_id: String,
    pub(crate) state: String,
    pub(crate) checkpoint: Lsn,
    pub(crate) timeline: TimelineId,
    pub(crate) segment_size: u64,
    /// The directory is a base backup or was rewound, and not started since.
    pub(crate) copied: bool,
}

impl Control {
    /// Read it. Works while PostgreSQL runs too.
    pub(crate) async fn read(env: &Env) -> Result<Self, tool::ToolError> {
        Self::of(env, &env.layout.data()).await
    }

    /// That of another directory.
    pub(crate) async fn of(env: &Env, data: &Path) -> Result<Self, tool::ToolError> {
        let copied = data.join("backup_label").exists();
        // Also half written it is left to the program.
        let file = std::fs::read(data.join("global/pg_control")).ok();
        if let Some(file) = file.as_deref().and_then(control_file::parse) {
            return Ok(Self::from_file(file, copied));
        }
        let mut command = env.program("pg_controldata");
        command.arg("-D").arg(data);
        let out = tool::run(command, Duration::from_secs(10)).await?;
        parse(&out.stdout, copied).ok_or_else(|| tool::ToolError::Output { program: "pg_controldata".into() })
    }

    /// The latest checkpoint, where it can be had without starting a program.
    pub(crate) fn checkpoint_at_hand(env: &Env) -> Option<Lsn> {
        let file = std::fs::read(env.layout.data().join("global/pg_control")).ok()?;
        control_file::parse(&file).map(|file| file.checkpoint)
    }

    fn from_file(file: ControlFile, copied: bool) -> Self {
        Self {
            system_id: file.system_id.to_string(),
            state: file.state.to_owned(),
            checkpoint: file.checkpoint,
            timeline: file.timeline,
            segment_size: file.segment_size,
            copied,
        }
    }

    /// It was a primary when it last ran (or ran as one for a moment). A copy of a primary was not.
    pub(crate) fn was_primary(&self) -> bool {
        !self.copied
            && matches!(self.state.as_str(), "in production" | "shut down" | "shutting down" | "in crash recovery")
    }

    /// Shut down cleanly.
    pub(crate) fn clean(&self) -> bool {
        matches!(self.state.as_str(), "shut down" | "shut down in recovery")
    }

    pub(crate) fn stopped(&self) -> PostgresState {
        PostgresState::Stopped {
            clean: self.clean(),
            timeline: self.timeline,
            was_primary: self.was_primary(),
            checkpoint_lsn: self.checkpoint,
        }
    }
}

fn parse(text: &str, copied: bool) -> Option<Control> {
    let field = |name: &str| text.lines().find_map(|l| Some(l.strip_prefix(name)?.strip_prefix(':')?.trim()));
    Some(Control {
        system_id: field("Database system identifier")?.to_owned(),
        state: field("Database cluster state")?.to_owned(),
        checkpoint: field("Latest checkpoint location")?.parse().ok()?,
        timeline: TimelineId(field("Latest checkpoint's TimeLineID")?.parse().ok()?),
        segment_size: field("Bytes per WAL segment")?.parse().ok()?,
        copied,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_is_understood() {
        let text = "pg_control version number:            1300\n\
            Database system identifier:           7381234567890123456\n\
            Database cluster state:               in production\n\
            Latest checkpoint location:           0/3000060\n\
            Latest checkpoint's REDO location:    0/3000028\n\
            Latest checkpoint's TimeLineID:       4\n\
            Bytes per WAL segment:                16777216\n";
        let c = parse(text, false).unwrap();
        assert_eq!((c.timeline, c.checkpoint, c.segment_size), (TimelineId(4), Lsn(0x0300_0060), 16 << 20));
        assert!(c.was_primary() && !c.clean());
        assert!(!parse(text, true).unwrap().was_primary());
        assert_eq!(parse("nothing", false), None);
    }
}
