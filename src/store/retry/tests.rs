//! The store's promises against a folder that fails on command.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use super::*;
use crate::store::{
    FileBackend,
    fault::{Fault, FaultBackend, Op},
};

struct Bench {
    _folder: tempfile::TempDir,
    faults: Arc<FaultBackend>,
    store: Store,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path()).unwrap();
    let faults = Arc::new(FaultBackend::new(Arc::new(backend)));
    let policy = RetryPolicy {
        attempts: 4,
        first_wait: Duration::from_millis(1),
        max_wait: Duration::from_millis(2),
        call_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_millis(50),
    };
    Bench { _folder: folder, store: Store::new(faults.clone(), policy), faults }
}

const KEY: &str = "a/b";
const BODY: Bytes = Bytes::from_static(b"the very bytes");
const OTHER: Bytes = Bytes::from_static(b"somebody else's");

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.expect_err("an error").kind
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_reading_back() {
    for lost in [StoreErrorKind::TimedOut, StoreErrorKind::Unreachable, StoreErrorKind::Busy] {
        for create in [false, true] {
            let b = bench();
            b.faults.on(Op::Put, 1, Fault::LoseAnswer(lost));
            let put = if create { b.store.put_new(KEY, BODY).await } else { b.store.put(KEY, BODY).await };
            put.unwrap();
            assert_eq!((b.faults.calls(Op::Put), b.faults.calls(Op::Get)), (1, 1), "{lost:?}");
            assert_eq!(b.store.get(KEY).await.unwrap(), BODY);
        }
    }
}

#[tokio::test]
async fn a_write_that_never_happened_is_tried_again() {
    let b = bench();
    b.faults.on(Op::Put, 1, Fault::Fail(StoreErrorKind::Busy)).on(Op::Put, 2, Fault::Fail(StoreErrorKind::TimedOut));
    b.store.put(KEY, BODY).await.unwrap();
    assert_eq!(b.faults.calls(Op::Put), 3);
    assert_eq!(b.faults.written(), [KEY]);
}

#[tokio::test]
async fn another_writers_object_is_never_taken_for_ours() {
    let b = bench();
    b.store.put(KEY, OTHER).await.unwrap();
    b.faults.on(Op::Put, 2, Fault::Fail(StoreErrorKind::TimedOut));
    assert_eq!(kind(b.store.put_new(KEY, BODY).await), StoreErrorKind::AlreadyExists);
    assert_eq!(b.store.get(KEY).await.unwrap(), OTHER);
}

#[tokio::test]
async fn taken_at_the_first_attempt_is_taken_even_with_equal_bytes() {
    let b = bench();
    b.store.put_new(KEY, BODY).await.unwrap();
    assert_eq!(kind(b.store.put_new(KEY, BODY).await), StoreErrorKind::AlreadyExists);
    assert_eq!(b.faults.calls(Op::Get), 0);
}

#[tokio::test]
async fn taken_at_a_later_attempt_is_looked_into() {
    // The answer is lost and the look fails too, so the second attempt meets the first one's object.
    let b = bench();
    b.faults.on(Op::Put, 1, Fault::LoseAnswer(StoreErrorKind::TimedOut));
    b.faults.on(Op::Get, 1, Fault::Fail(StoreErrorKind::NotFound));
    b.store.put_new(KEY, BODY).await.unwrap();
    assert_eq!((b.faults.calls(Op::Put), b.faults.calls(Op::Get)), (2, 2));
}

#[tokio::test]
async fn the_last_attempt_is_settled_too() {
    let b = bench();
    for nth in 1..=3 {
        b.faults.on(Op::Put, nth, Fault::Fail(StoreErrorKind::Busy));
    }
    b.faults.on(Op::Put, 4, Fault::LoseAnswer(StoreErrorKind::Busy));
    b.store.put(KEY, BODY).await.unwrap();
    assert_eq!(b.faults.calls(Op::Put), 4);
}

#[tokio::test]
async fn a_write_that_cannot_be_looked_at_says_so() {
    let b = bench();
    b.faults.always(Op::Put, Fault::Fail(StoreErrorKind::Busy));
    b.faults.always(Op::Get, Fault::Fail(StoreErrorKind::Denied));
    let error = b.store.put(KEY, BODY).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Busy);
    assert!(error.detail.contains("unknown"), "{error}");
}

#[tokio::test]
async fn permanent_errors_are_tried_once() {
    use StoreErrorKind as K;
    for permanent in [K::NoSuchBucket, K::Denied, K::Tls, K::OutOfSpace, K::TooLarge, K::Invalid, K::Other, K::NotFound]
    {
        let b = bench();
        b.faults.always(None, Fault::Fail(permanent));
        assert_eq!(kind(b.store.put(KEY, BODY).await), permanent);
        assert_eq!(kind(b.store.get(KEY).await), permanent);
        assert_eq!(kind(b.store.head(KEY).await), permanent);
        assert_eq!(kind(b.store.delete(KEY).await), permanent);
        assert_eq!(kind(b.store.now().await), permanent);
        assert_eq!(kind(b.store.list_dirs("").await), permanent);
        assert_eq!(b.faults.calls(None), 6, "{permanent:?}");
    }
}

#[tokio::test]
async fn transient_errors_are_tried_as_often_as_told() {
    let b = bench();
    b.faults.always(None, Fault::Fail(StoreErrorKind::Busy));
    let error = b.store.head(KEY).await.unwrap_err();
    assert_eq!((error.kind, error.attempts, b.faults.calls(Op::Head)), (StoreErrorKind::Busy, 4, 4));
    let error = b.store.get(KEY).await.unwrap_err();
    assert_eq!((error.attempts, b.faults.calls(Op::Get)), (4, 4));
    let mut seen = 0;
    assert!(b.store.list("", &mut |_| seen += 1).await.is_err());
    assert_eq!((seen, b.faults.calls(Op::List)), (0, 4));
}

#[tokio::test]
async fn a_body_cut_anywhere_still_comes_whole() {
    let variants: [fn(u64) -> Fault; 3] = [Fault::CutBody, Fault::BreakBody, Fault::StallBody];
    for variant in variants {
        for after in 0..=BODY.len() as u64 {
            let b = bench();
            b.store.put(KEY, BODY).await.unwrap();
            b.faults.on(Op::Get, 1, variant(after));
            assert_eq!(b.store.get(KEY).await.unwrap(), BODY, "{:?}", variant(after));
            // Also when it breaks after the last byte: a body that fails has failed. Only its end there is no fault.
            let whole = matches!(variant(after), Fault::CutBody(after) if after == BODY.len() as u64);
            assert_eq!(b.faults.calls(Op::Get), if whole { 1 } else { 2 }, "{:?}", variant(after));
        }
    }
}

#[tokio::test]
async fn a_body_cut_again_and_again_is_continued_not_begun_anew() {
    let b = bench();
    b.store.put(KEY, BODY).await.unwrap();
    for nth in 1..=3 {
        b.faults.on(Op::Get, nth, Fault::BreakBody(4));
    }
    assert_eq!(b.store.get(KEY).await.unwrap(), BODY);
    // 4 + 4 + 4 + the last 2: begun anew, the fourth attempt would not have been the last.
    assert_eq!(b.faults.calls(Op::Get), 4);
}

#[tokio::test]
async fn a_body_that_never_comes_whole_is_an_error() {
    for (fault, expected) in [
        (Fault::CutBody(0), StoreErrorKind::Truncated),
        (Fault::BreakBody(0), StoreErrorKind::Truncated),
        (Fault::StallBody(0), StoreErrorKind::TimedOut),
        (Fault::GrowBody, StoreErrorKind::Truncated),
    ] {
        let b = bench();
        b.store.put(KEY, BODY).await.unwrap();
        b.faults.always(Op::Get, fault.clone());
        assert_eq!(kind(b.store.get(KEY).await), expected, "{fault:?}");
        assert_eq!(b.faults.calls(Op::Get), 4);
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_once_is_read_anew() {
    let b = bench();
    b.store.put(KEY, BODY).await.unwrap();
    b.faults.on(Op::Get, 1, Fault::GrowBody);
    assert_eq!(b.store.get(KEY).await.unwrap(), BODY);
    assert_eq!(b.faults.calls(Op::Get), 2);
}

#[tokio::test]
async fn an_object_that_changed_between_is_read_from_its_start() {
    let b = bench();
    b.store.put(KEY, BODY).await.unwrap();
    b.faults.on(Op::Get, 1, Fault::BreakBody(5)).on(Op::Get, 2, Fault::OtherTag);
    assert_eq!(b.store.get(KEY).await.unwrap(), BODY);
    assert_eq!(b.faults.calls(Op::Get), 3);
}

#[tokio::test]
async fn no_answer_is_a_timeout() {
    let b = bench();
    let store = Store::new(
        b.faults.clone(),
        RetryPolicy { call_timeout: Duration::from_millis(20), attempts: 2, ..(*b.store.policy).clone() },
    );
    b.faults.always(Op::Head, Fault::Late(Duration::from_secs(60)));
    let error = store.head(KEY).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (StoreErrorKind::TimedOut, 2));
}

#[tokio::test]
async fn a_listing_that_turns_in_circles_is_an_error() {
    let b = bench();
    b.faults.always(Op::List, Fault::NextPage("again".to_owned()));
    let error = b.store.list("", &mut |_| {}).await.unwrap_err();
    assert!(error.detail.contains("twice"), "{error}");
}

#[tokio::test]
async fn a_page_is_handed_over_once_however_often_it_was_tried() {
    let b = bench();
    b.store.put(KEY, BODY).await.unwrap();
    b.faults.on(Op::List, 1, Fault::LoseAnswer(StoreErrorKind::Busy));
    let mut keys = Vec::new();
    b.store.list("", &mut |object| keys.push(object.key)).await.unwrap();
    assert_eq!(keys, [KEY]);
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_any_call() {
    let b = bench();
    let body = Bytes::from(vec![0; usize::try_from(MAX_OBJECT).unwrap() + 1]);
    assert_eq!(kind(b.store.put(KEY, body).await), StoreErrorKind::TooLarge);
    assert_eq!(b.faults.calls(None), 0);
}

#[tokio::test]
async fn a_lying_store_is_not_noticed_here_but_by_the_listing() {
    let b = bench();
    b.faults.on(Op::Put, 1, Fault::LoseWrite);
    b.store.put(KEY, BODY).await.unwrap();
    assert_eq!(kind(b.store.head(KEY).await), StoreErrorKind::NotFound);
    assert!(b.faults.written().is_empty());
}

#[test]
fn waits_double_up_to_the_longest() {
    let policy = RetryPolicy::default();
    let millis = |attempt, share| policy.wait(attempt, share).as_millis();
    assert_eq!([millis(1, 1.0), millis(2, 1.0), millis(5, 1.0)], [200, 400, 3200]);
    assert_eq!([millis(1, 0.0), millis(40, 1.0), millis(u32::MAX, 0.0)], [100, 10_000, 5_000]);
}
