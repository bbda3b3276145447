//! What is going on: a line that is rewritten on a terminal, one log line every ten seconds elsewhere.

use std::{
    io::IsTerminal,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::output::Output;
use crate::{pipeline::Progress, report};

const REDRAW: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The bar that is drawn, for those who write to stderr beside it.
static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Runs `write` while the bar is out of the way.
pub(super) fn aside(write: impl FnOnce()) {
    match BAR.get() {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Shows progress until it is dropped.
pub(super) struct Shown {
    task: JoinHandle<()>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(bar) = BAR.get() {
            bar.finish_and_clear();
        }
    }
}

/// Starts to show `progress`.
pub(super) fn show(progress: Arc<Progress>, output: &Output) -> Shown {
    let task = match (output.is_quiet(), std::io::stderr().is_terminal()) {
        (true, _) => tokio::spawn(async {}),
        (false, true) => tokio::spawn(draw(progress)),
        (false, false) => tokio::spawn(log(progress)),
    };
    Shown { task }
}

fn line(progress: &Progress, since: Instant) -> String {
    let raw = progress.raw.load(Ordering::Relaxed);
    let seconds = since.elapsed().as_secs_f64().max(0.001);
    let total = progress.total_raw.load(Ordering::Relaxed);
    let of = if total > raw { format!(" of {}", report::bytes(total)) } else { String::new() };
    format!(
        "{}: {}{of}, {}, {} moved, {}/s",
        progress.phase(),
        report::bytes(raw),
        report::count(progress.rows.load(Ordering::Relaxed), "row"),
        report::bytes(progress.moved.load(Ordering::Relaxed)),
        report::bytes((raw as f64 / seconds) as u64),
    )
}

async fn draw(progress: Arc<Progress>) {
    let since = Instant::now();
    let bar = BAR.get_or_init(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar
    });
    loop {
        bar.set_message(report::printable(&line(&progress, since)));
        bar.tick();
        tokio::time::sleep(REDRAW).await;
    }
}

async fn log(progress: Arc<Progress>) {
    let since = Instant::now();
    loop {
        tokio::time::sleep(LOG_EVERY).await;
        tracing::info!("{}", line(&progress, since));
    }
}
