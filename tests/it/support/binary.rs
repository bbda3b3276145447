//! Running the program under test: a clean environment, its output whole, and a deadline.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{postgres::Major, process, tools};

/// Nothing that a test runs takes as long; whatever does hangs.
const DEADLINE: Duration = Duration::from_secs(600);

/// One run of `altlas-backup`, in the making.
#[derive(Debug)]
pub struct Run {
    before: Vec<OsString>,
    arguments: Vec<OsString>,
    config: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
    path: Vec<PathBuf>,
    deadline: Duration,
}

impl Run {
    /// With these arguments, the command's name first.
    pub fn new(arguments: &[&str]) -> Self {
        Self {
            before: Vec::new(),
            arguments: arguments.iter().map(OsString::from).collect(),
            config: None,
            environment: Vec::new(),
            path: [
                tools::client_folder(Major::V18),
                tools::client_folder(Major::V15),
                "/usr/bin".into(),
                "/bin".into(),
            ]
            .into(),
            deadline: DEADLINE,
        }
    }

    /// One more argument.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// With `--config FILE`.
    pub fn config(mut self, file: impl AsRef<Path>) -> Self {
        self.config = Some(file.as_ref().to_owned());
        self
    }

    /// With an environment variable. Nothing is inherited.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// With these folders as `PATH`, in place of PostgreSQL's clients 18 and 15 and `/usr/bin`.
    pub fn path(mut self, folders: &[&Path]) -> Self {
        self.path = folders.iter().map(|folder| folder.to_path_buf()).collect();
        self
    }

    /// Started by another program, which is given the program's path and arguments as its last ones: `nsenter … --`.
    pub fn through(mut self, command: &[&str]) -> Self {
        self.before = command.iter().map(OsString::from).collect();
        self
    }

    /// With another deadline than ten minutes.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn output(self) -> Output {
        self.spawn().wait()
    }

    /// Runs it to its end, which must be exit code 0.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.output().assert_code(0)
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        let program = OsString::from(env!("CARGO_BIN_EXE_altlas-backup"));
        let mut words = self.before.iter().chain([&program]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command.env_clear().envs([("HOME", "/nonexistent"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]);
        command.env("PATH", std::env::join_paths(&self.path).unwrap()).envs(self.environment);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = format!("altlas-backup {}", self.arguments.join(OsStr::new(" ")).display());
        let mut child = command.spawn().expect("the program under test can be started");
        let stdout = read_all(child.stdout.take().map(Pipe::Out));
        let stderr = read_all(child.stderr.take().map(Pipe::Err));
        Running { shown, child, stdout: Some(stdout), stderr: Some(stderr), deadline: self.deadline, peak: 0 }
    }
}

enum Pipe {
    Out(ChildStdout),
    Err(ChildStderr),
}

fn read_all(pipe: Option<Pipe>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = match pipe {
            Some(Pipe::Out(mut pipe)) => pipe.read_to_end(&mut bytes),
            Some(Pipe::Err(mut pipe)) => pipe.read_to_end(&mut bytes),
            None => Ok(0),
        };
        bytes
    })
}

/// The program under test while it runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    deadline: Duration,
    peak: u64,
}

impl Running {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has it not ended yet?
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and its end awaited: after this it writes nothing any more.
    pub fn kill9(mut self) -> Output {
        let _ = self.child.kill();
        self.wait()
    }

    /// As Ctrl-C does.
    pub fn interrupt(&self) {
        process::signal(&self.child, Signal::INT);
    }

    /// Sends any signal.
    pub fn signal(&self, signal: Signal) {
        process::signal(&self.child, signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        let start = Instant::now();
        let status = loop {
            self.look_at_memory();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > self.deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let (_, stderr) = self.texts();
                panic!("{} still ran after {:?}; its stderr:\n{stderr}", self.shown, self.deadline);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = self.texts();
        Output {
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            peak_memory: self.peak,
            shown: self.shown.clone(),
        }
    }

    fn texts(&mut self) -> (String, String) {
        let text = |reader: Option<JoinHandle<Vec<u8>>>| {
            String::from_utf8_lossy(&reader.map(|reader| reader.join().unwrap()).unwrap_or_default()).into_owned()
        };
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        (text(stdout), text(stderr))
    }

    /// The kernel keeps the highest value itself, so looking now and then misses little.
    fn look_at_memory(&mut self) {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.id())) else { return };
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        if let Some(peak) = peak.and_then(|kib| kib.trim().parse::<u64>().ok()) {
            self.peak = self.peak.max(peak * 1024);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a finished run left.
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
    /// Peak resident size in bytes, as last seen before its end.
    pub peak_memory: u64,
    shown: String,
}

impl Output {
    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("stdout is not one JSON document: {error}\n{}", self.text()),
        }
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n{}", self.text());
        self
    }

    /// One clear error: this exit code, one line on stderr that starts with `error: `, all these words on stderr (in
    /// any case), and nothing that looks like a crash.
    #[track_caller]
    pub fn assert_error(self, code: i32, words: &[&str]) -> Self {
        let output = self.assert_code(code);
        let errors = output.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "lines that start with `error: `\n{}", output.text());
        let stderr = output.stderr.to_lowercase();
        for word in words {
            assert!(stderr.contains(&word.to_lowercase()), "`{word}` is not in the error\n{}", output.text());
        }
        for crash in ["panicked", "rust_backtrace", "stack backtrace"] {
            assert!(!stderr.contains(crash), "`{crash}` is in the error\n{}", output.text());
        }
        output
    }

    /// Everything about it, for a failing test's message.
    pub fn text(&self) -> String {
        let mut text = format!("$ {}\n", self.shown);
        let _ = writeln!(text, "code {:?}, signal {:?}", self.code, self.signal);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let _ = writeln!(text, "--- {name} ---\n{}", stream.trim_end());
        }
        text
    }
}
