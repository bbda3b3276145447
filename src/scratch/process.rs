//! The process of a throwaway server.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::{ScratchError, folder::Folder};

/// Of a log, so much of its end is shown.
const SHOWN: usize = 1500;
const LOOK: Duration = Duration::from_millis(20);
/// How long a server may take to end by itself.
const ENDS: Duration = Duration::from_secs(10);
/// Debian's, of util-linux.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// How a server is run.
pub(super) struct Run<'a> {
    /// For messages.
    pub(super) name: &'static str,
    pub(super) program: &'a Path,
    pub(super) arguments: Vec<String>,
    /// As whom; absent: as ourselves.
    pub(super) user: Option<&'a User>,
    /// Where it is told to end by a signal that it takes well.
    pub(super) ends_by: Signal,
}

/// A running server. Ended when dropped.
pub(super) struct Server {
    child: Child,
    ends_by: Signal,
    log: PathBuf,
    name: &'static str,
}

/// A command with nothing of our environment: it may hold secrets.
pub(super) fn command(program: &Path, user: Option<&User>, dies_with_us: Option<&str>) -> Command {
    let mut command = match dies_with_us {
        Some(signal) if Path::new(SETPRIV).exists() => {
            let mut command = Command::new(SETPRIV);
            if let Some(user) = user {
                let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
                command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups"]);
            }
            command.args(["--pdeathsig", signal, "--"]).arg(program);
            command
        }
        _ => {
            let mut command = Command::new(program);
            if let Some(user) = user {
                command.uid(user.uid).gid(user.gid);
            }
            command
        }
    };
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::null()).process_group(0);
    command
}

impl Server {
    /// Starts it in its folder, with its output in a log there.
    pub(super) fn start(folder: &Folder, run: Run<'_>) -> Result<Self, ScratchError> {
        let failed = |error: io::Error| ScratchError::Start { program: run.name, detail: error.to_string() };
        let log = folder.path().join("log");
        let file = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let signal = if run.ends_by == Signal::QUIT { "QUIT" } else { "KILL" };
        let mut command = command(run.program, run.user, Some(signal));
        command.args(&run.arguments).current_dir(folder.path());
        command.stdout(file.try_clone().map_err(failed)?).stderr(file);
        let child = command.spawn().map_err(failed)?;
        folder.note_process(child.id()).map_err(failed)?;
        Ok(Self { child, ends_by: run.ends_by, log, name: run.name })
    }

    /// Waits until `ready` says so; an error where the server ends before, or takes longer than it may.
    pub(super) async fn wait(&mut self, limit: Duration, ready: impl Fn() -> bool) -> Result<(), ScratchError> {
        let began = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap_or_default();
            if ended.is_none() && ready() {
                return Ok(());
            }
            let detail = match ended {
                Some(status) => format!("it ended with {status}: {}", self.last_words()),
                None if began.elapsed() > limit => {
                    format!("it is not ready after {} s: {}", limit.as_secs(), self.last_words())
                }
                None => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            };
            return Err(ScratchError::Start { program: self.name, detail });
        }
    }

    /// Does it still run?
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Does the log hold this text?
    pub(super) fn log(&self) -> impl Fn(&str) -> bool + use<> {
        let log = self.log.clone();
        move |text| fs::read_to_string(&log).is_ok_and(|log| log.contains(text))
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let end = &log[log.len().saturating_sub(SHOWN)..];
        String::from_utf8_lossy(end).trim().replace('\n', "; ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.ends_by != Signal::KILL) {
            let _ = rustix::process::kill_process(pid, self.ends_by);
            let began = Instant::now();
            while began.elapsed() < ENDS {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port of 127.0.0.1; somebody else may take it before the server does.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A password that nobody knows.
pub(super) fn password() -> String {
    format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>())
}

/// A user by name, from /etc/passwd.
pub(super) fn user(name: &str) -> Option<User> {
    user_in(&fs::read_to_string("/etc/passwd").ok()?, name)
}

fn user_in(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
        (found == name).then_some(())?;
        Some(User { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(user_in(passwd, "nobody"), Some(User { name: "nobody".into(), uid: 65534, gid: 65533 }));
        assert_eq!(user_in(passwd, "nobod"), None);
    }
}
