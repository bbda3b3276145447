//! Logs on stderr: text on a terminal, JSON elsewhere. RUST_LOG overrules `-v` and `-q`.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{arguments::Global, output::wants_color, progress};

/// Starts logging for the life of the process.
pub(super) fn start(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        // What NATS' client says of an error, our own error says with its next step.
        (true, _) => "error,async_nats=off",
        (_, 0) => "warn,altlas_backup=info,async_nats=off",
        (_, 1) => "info,altlas_backup=debug",
        // How the SDK looks for an endpoint is told with the credentials: not the secret, but the key's id.
        _ => "debug,aws_smithy_runtime::client::orchestrator::endpoints=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr).with_target(false);
    // Only a second start could fail.
    let _ = match terminal {
        true => builder.with_ansi(wants_color(global.color, terminal)).without_time().try_init(),
        false => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
}

/// Stderr that does not write through a progress bar.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;
    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One event, written as a whole when it is dropped.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody is left to be told that stderr is closed.
        progress::aside(|| {
            let _ = io::stderr().write_all(&self.0);
        });
    }
}
