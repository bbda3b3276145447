//! Starting servers so that none outlives the tests.

use std::{
    io,
    path::Path,
    process::{Child, Command},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::tools;

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// A command that the kernel kills when we die, run as the user `postgres` when `as_postgres` and we are root.
pub fn bound_command(program: &Path, as_postgres: bool) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if as_postgres && tools::is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).env_clear();
    command.envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]).current_dir("/tmp");
    command
}

/// Starts a command of [`bound_command`].
///
/// The kernel's "parent died" means the *thread* that forked, and a test's thread ends with the test. A server that
/// several tests share must live longer, so one thread that never ends starts them all.
pub fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in queue {
                    let _ = answer.send(command.spawn());
                }
            })
            .unwrap();
        orders
    });
    let (answer, child) = mpsc::sync_channel(1);
    spawner.send((command, answer)).unwrap();
    child.recv().unwrap()
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &Child, signal: Signal) {
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Sends a signal, waits for the end, and kills what has not ended by the deadline.
pub fn stop(child: &mut Child, with: Signal, deadline: Duration) {
    signal(child, with);
    let start = Instant::now();
    while start.elapsed() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            _ => return,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}
