//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::NamePattern,
    repository::{Level, Selector},
};

/// Backs up PostgreSQL, Redis and NATS JetStream to S3-compatible storage and proves that what it stored can be restored.
#[derive(Debug, Parser)]
#[command(name = "altlas-backup", version, max_term_width = 120, propagate_version = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Configuration file [env: ALTLAS_BACKUP_CONFIG] [default: ./altlas-backup.toml, then /etc/altlas-backup/altlas-backup.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Repository to use in place of the configured one: s3://bucket/prefix or file:///folder
    #[arg(long, global = true, value_name = "URL")]
    pub(super) repository: Option<String>,
    /// Print exactly one JSON document on stdout, also on failure
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Say more on stderr; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
    /// Say only errors on stderr
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    pub(super) color: Color,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create the repository
    Init {
        /// Be content with a repository that is there already
        #[arg(long)]
        if_missing: bool,
    },
    /// Make one backup now
    Backup {
        /// Only this source (may be given several times)
        #[arg(long, value_name = "NAME")]
        source: Vec<String>,
    },
    /// List backups, newest first
    List,
    /// Show one backup: sources, artifacts, sizes
    Show {
        /// An id, a unique beginning of one, or `latest`
        backup: Selector,
    },
    /// Check that a backup is what it was when it was made
    Verify {
        /// An id, a unique beginning of one, or `latest`
        #[arg(default_value = "latest")]
        backup: Selector,
        /// How deep: `presence` lists every object, `content` reads every byte, `restore` restores into throwaway servers and compares
        #[arg(long, default_value = "restore", value_name = "presence|content|restore")]
        level: Level,
    },
    /// Restore a backup: shows the plan first, touches nothing before it is confirmed
    Restore(Restore),
    /// Let backups expire by `[retention]`, then remove what nothing needs any more
    Prune(Prune),
    /// Run as a daemon: backups, verifications and retention by the configured schedules, with metrics and alerts
    Serve {
        /// Run nothing: only metrics and alerts, beside runs that something else starts
        #[arg(long)]
        observe_only: bool,
    },
    /// Check configuration, repository, sources, privileges, versions and clocks
    Doctor,
    /// Make an age key: an identity, which is the secret half, and its recipient, the public one
    Keygen(Keygen),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// An id, a unique beginning of one, `latest` or `latest-verified`
    #[arg(default_value = "latest-verified")]
    pub(super) backup: Selector,
    /// Only this source (may be given several times)
    #[arg(long, value_name = "NAME")]
    pub(super) source: Vec<String>,
    /// Restore a source into another server; its password comes from ALTLAS_BACKUP_TARGET_<NAME>_PASSWORD, else from the source's own
    #[arg(long, value_name = "NAME=URL")]
    pub(super) target: Vec<String>,
    /// Restore only the rows of these tables, by a pattern for `schema.table` (may be given several times); all others are there, empty
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    pub(super) table: Vec<NamePattern>,
    /// Restore only this database, under the name TO (may be given several times)
    #[arg(long, value_name = "FROM=TO", value_parser = pair)]
    pub(super) database: Vec<(String, String)>,
    /// Write a Redis source's dump to this file, for a server to load when it starts, instead of restoring into a server
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    pub(super) to_rdb: Option<PathBuf>,
    /// Show the plan and stop
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Carry out the plan without asking
    #[arg(long)]
    pub(super) yes: bool,
    /// Replace what is there: PostgreSQL's old databases are kept under another name, Redis' are flushed, NATS' streams are deleted
    #[arg(long)]
    pub(super) overwrite: bool,
}

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Show the plan with its reasons and stop
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Let so much of a source's snapshots expire at once, this time [default: retention.expire_at_most_percent]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) expire_at_most: Option<u32>,
    /// Remove so much of all parts that no expired backup explains, this time [default: 30]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) sweep_at_most: Option<u32>,
    /// Bring a backup back that expired (an id or a unique beginning of one), and do nothing else
    #[arg(long, value_name = "BACKUP", conflicts_with_all = ["dry_run", "expire_at_most", "sweep_at_most"])]
    pub(super) undo: Option<String>,
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Keygen {
    /// Write the identity to this new file, which only its owner may read, and print the recipient
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Print the identity, as the text of such a file
    #[arg(long)]
    pub(super) print: bool,
}

fn pattern(text: &str) -> Result<NamePattern, String> {
    NamePattern::new(text).ok_or_else(|| "a pattern must not be empty".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err("two names with `=` between them are needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
