//! What `scripts/bench` measures the program against: the same API of NATS with nothing done to the bytes.
//!
//! ```text
//! nats drain  PORT USER PASSWORD STREAM [FILE]     takes a snapshot, acknowledges every chunk, throws it away or writes it to FILE
//! nats load   PORT USER PASSWORD STREAM FILE N     restores FILE, its compressed bytes as they came, with N chunks in flight
//! nats delay  LISTEN-PORT PORT MILLISECONDS        a proxy that adds a round trip of so many milliseconds
//! ```
//! Prints seconds and bytes. Only the exchange is timed.

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
};

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Done {
    // Cargo's own arguments come first where it runs this as a benchmark.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (seconds, bytes) = match words[..] {
        ["drain", port, user, password, stream] => drain(&connect(port, user, password).await?, stream, None).await?,
        ["drain", port, user, password, stream, file] => {
            drain(&connect(port, user, password).await?, stream, Some(file)).await?
        }
        ["load", port, user, password, stream, file, most] => {
            load(&connect(port, user, password).await?, stream, file, most.parse()?).await?
        }
        ["delay", listen, port, milliseconds] => return delay(listen, port, milliseconds.parse()?).await,
        // `cargo bench` without more: there is nothing to measure by itself.
        _ => return Ok(()),
    };
    println!("{seconds:.2} {bytes}");
    Ok(())
}

async fn connect(port: &str, user: &str, password: &str) -> Done<Client> {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    Ok(options.request_timeout(Some(Duration::from_secs(600))).connect(format!("nats://127.0.0.1:{port}")).await?)
}

async fn ask(client: &Client, subject: String, body: &Value) -> Done<Value> {
    let answer: Value = serde_json::from_slice(&client.request(subject, body.to_string().into()).await?.payload)?;
    match answer.get("error") {
        Some(error) => Err(error.to_string().into()),
        None => Ok(answer),
    }
}

async fn drain(client: &Client, stream: &str, file: Option<&str>) -> Done<(f64, u64)> {
    let inbox = client.new_inbox();
    let mut chunks = client.subscribe(inbox.clone()).await?;
    let start = Instant::now();
    let body = json!({"deliver_subject": inbox, "chunk_size": 128 * 1024});
    let answer = ask(client, format!("$JS.API.STREAM.SNAPSHOT.{stream}"), &body).await?;
    let (mut bytes, mut kept) = (0, Vec::new());
    while let Some(chunk) = chunks.next().await.filter(|chunk| !chunk.payload.is_empty()) {
        bytes += chunk.payload.len() as u64;
        if let Some(reply) = chunk.reply {
            client.publish(reply, Bytes::new()).await?;
        }
        if file.is_some() {
            kept.extend_from_slice(&chunk.payload);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if let Some(file) = file {
        fs::write(file, kept)?;
        fs::write(format!("{file}.json"), json!({"config": answer["config"], "state": answer["state"]}).to_string())?;
    }
    Ok((seconds, bytes))
}

async fn load(client: &Client, stream: &str, file: &str, most: usize) -> Done<(f64, u64)> {
    let data = Bytes::from(fs::read(file)?);
    let body: Value = serde_json::from_slice(&fs::read(format!("{file}.json"))?)?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let start = Instant::now();
    let begun = ask(client, format!("$JS.API.STREAM.RESTORE.{stream}"), &body).await?;
    let subject = begun["deliver_subject"].as_str().ok_or("no subject")?.to_owned();
    let mut in_flight = 0;
    let mut at = 0;
    while at < data.len() {
        let chunk = data.slice(at..data.len().min(at + 64 * 1024));
        at += chunk.len();
        client.publish_with_reply(subject.clone(), inbox.clone(), chunk).await?;
        in_flight += 1;
        while in_flight >= most {
            answers.next().await.ok_or("lost")?;
            in_flight -= 1;
        }
    }
    client.publish_with_reply(subject, inbox, Bytes::new()).await?;
    loop {
        let answer = answers.next().await.ok_or("lost")?;
        if !answer.payload.is_empty() {
            let said: Value = serde_json::from_slice(&answer.payload)?;
            return match said.get("error") {
                Some(error) => Err(error.to_string().into()),
                None => Ok((start.elapsed().as_secs_f64(), data.len() as u64)),
            };
        }
    }
}

/// Half of the round trip in each direction; what is on its way is not bounded, as on a long line.
async fn delay(listen: &str, port: &str, milliseconds: u64) -> Done {
    let listener = TcpListener::bind(format!("127.0.0.1:{listen}")).await?;
    loop {
        let (near, _) = listener.accept().await?;
        let far = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        let half = Duration::from_micros(milliseconds * 500);
        tokio::spawn(carry(near_read, far_write, half));
        tokio::spawn(carry(far_read, near_write, half));
    }
}

async fn carry(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, late: Duration) {
    let (send, mut held) = mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let writing = async {
        while let Some((due, bytes)) = held.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut space = vec![0; 256 * 1024];
        while let Ok(n @ 1..) = from.read(&mut space).await {
            if send.send((tokio::time::Instant::now() + late, space[..n].to_vec())).is_err() {
                break;
            }
        }
        drop(send);
    };
    tokio::join!(reading, writing);
}
