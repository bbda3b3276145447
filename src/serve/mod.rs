//! The daemon: asks once a minute what is due and does it, one thing at a time; serves health, readiness and metrics.
//!
//! It knows nothing that the repository does not: after a restart, on an empty disk, everything is as it was. What is due is decided by
//! [`crate::schedule`] from a history that was read right then, never from an old one. Nothing that fails ends the daemon: a store
//! that is down is asked again a minute later, a run that panics has failed.
//!
//! tokio-cron-scheduler is the clock and nothing else; should it stop, as it has done
//! (<https://github.com/mvniekerk/tokio-cron-scheduler/issues/113>), a timer stands in for it.

mod daemon;
mod http;
mod metrics;
mod operations;
mod state;
mod status;
#[cfg(test)]
mod tests;

pub use self::{
    daemon::{Read, Runner},
    metrics::{SourceFacts, facts},
    operations::Operations,
};

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{MissedTickBehavior, timeout},
};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tokio_util::sync::CancellationToken;

use self::{daemon::Daemon, state::Shared};
use crate::{
    config::Config,
    operation::{Context, Error},
};

/// The first second of every minute.
const EVERY_MINUTE: &str = "0 * * * * *";
/// Without a tick for so long, one is made.
const NO_TICK: Duration = Duration::from_secs(90);
/// How long requests that are being answered may hold up the end.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// A backup that is due begins within this time, at an instant that each process chooses for itself: two that serve one repository
/// should not look at the same moment.
const SPREAD: Duration = Duration::from_secs(5);

/// When the daemon looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// At the first second of every minute.
    Minute,
    /// So often.
    Every(Duration),
}

/// How the daemon runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Nothing is run: only metrics and alerts, beside runs that are started by something else.
    pub observe_only: bool,
    /// When it looks.
    pub tick: Tick,
    /// How long after it became due a backup begins, at most.
    pub spread: Duration,
}

impl Options {
    /// As it is meant to run.
    pub fn new(observe_only: bool) -> Self {
        Self { observe_only, tick: Tick::Minute, spread: SPREAD }
    }
}

/// What a daemon did until it was told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServeReport {
    /// Backups that were made, complete or not.
    pub backups: u64,
    /// Verifications that ended, with whatever verdict.
    pub verifications: u64,
    /// How often retention ran.
    pub prunes: u64,
    /// What could not be done.
    pub failures: u64,
}

/// Serves until it is told to stop.
///
/// # Errors
/// A configuration without anything to do, an address that is taken; nothing else ends it.
pub async fn serve(context: &Context, options: Options) -> Result<ServeReport, Error> {
    if context.config.schedules.is_empty() && !options.observe_only {
        return Err(Error::Usage {
            message: format!("there is no schedule in {}", context.config.origin.display()),
            hint: Some("add a [[schedule]] section, or serve metrics and alerts only: `--observe-only`".into()),
        });
    }
    let address = context.config.server.listen;
    let refused = |error: std::io::Error| Error::Listen { address, problem: error.to_string() };
    let listener = match TcpListener::bind(address).await {
        // Every address, on a machine without IPv6: those that it has.
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = listener.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    tracing::info!("listening on http://{address}");
    let runner = Arc::new(Operations::new(context));
    Ok(run(context.config.clone(), runner, context.cancel.clone(), listener, options).await)
}

/// `EAFNOSUPPORT` where the kernel has no IPv6, `EADDRNOTAVAIL` where no interface may use it.
fn is_without_ipv6(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|errno| matches!(errno, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// Serves on `listener`, with whatever carries things out, until `cancel`.
pub async fn run(
    config: Arc<Config>,
    runner: Arc<dyn Runner>,
    cancel: CancellationToken,
    listener: TcpListener,
    options: Options,
) -> ServeReport {
    let shared = Arc::new(Shared::new(&config));
    let http_stop = CancellationToken::new();
    let http = tokio::spawn(http::serve(listener, shared.clone(), http_stop.clone()));
    let (ticks, ticking) = mpsc::channel(1);
    let clock = start_clock(options.tick, ticks).await;
    let report = Daemon::new(config, runner, cancel, shared, options).run(ticking).await;
    clock.stop().await;
    http_stop.cancel();
    // Whoever asks again is told by the closed port.
    let _ = timeout(LAST_ANSWERS, http).await;
    report
}

/// What ticks.
enum RunningClock {
    Cron(Box<JobScheduler>),
    Timer(tokio::task::JoinHandle<()>),
    Nothing,
}

impl RunningClock {
    async fn stop(self) {
        match self {
            Self::Cron(mut scheduler) => {
                if let Err(error) = scheduler.shutdown().await {
                    tracing::debug!("the clock does not stop: {error}");
                }
            }
            Self::Timer(task) => task.abort(),
            Self::Nothing => {}
        }
    }
}

async fn start_clock(tick: Tick, ticks: mpsc::Sender<()>) -> RunningClock {
    match tick {
        Tick::Minute => match cron(ticks).await {
            Ok(scheduler) => RunningClock::Cron(Box::new(scheduler)),
            Err(error) => {
                tracing::error!("the clock does not start, a timer stands in for it: {error}");
                RunningClock::Nothing
            }
        },
        Tick::Every(period) => RunningClock::Timer(tokio::spawn(async move {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                interval.tick().await;
                let _ = ticks.try_send(());
            }
        })),
    }
}

async fn cron(ticks: mpsc::Sender<()>) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    // One tick that was not taken yet is enough.
    let job = Job::new(EVERY_MINUTE, move |_, _| {
        let _ = ticks.try_send(());
    })?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    Ok(scheduler)
}
