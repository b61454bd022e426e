//! Messages that were rejected.

use runcast_broker::{Broker, DeadLetter, Depth, Name};

use crate::Backend;
use crate::harness::{ONE, ack, consume, depth_becomes, drain, name, publish, soon, take, text};

async fn reject_all(broker: &dyn Broker, queue: &Name, messages: &[&str]) {
    publish(broker, queue, messages).await;
    let mut consumer = consume(broker, &[queue], ONE).await;
    for message in messages {
        let delivery = take(&mut *consumer, message).await;
        soon("reject", delivery.reject(&format!("because of {message}"))).await.expect("reject");
    }
}

async fn letters(broker: &dyn Broker, queue: &Name, after: Option<&str>, limit: usize) -> Vec<DeadLetter> {
    soon("dead letters", broker.dead_letters(queue, after, limit)).await.expect("dead letters")
}

fn messages(letters: &[DeadLetter]) -> Vec<&str> {
    letters.iter().map(|letter| text(&letter.message)).collect()
}

/// It is kept with the text a person will read, and is delivered no more.
pub async fn a_rejected_message_is_a_dead_letter_with_its_reason(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    reject_all(broker, &queue, &["bad"]).await;
    depth_becomes(broker, &queue, Depth { dead: 1, ..Depth::default() }).await;
    let kept = letters(broker, &queue, None, 10).await;
    assert_eq!(messages(&kept), ["bad"]);
    assert_eq!(kept[0].reason, "because of bad");
    publish(broker, &queue, &["good"]).await;
    drain(&mut *consume(broker, &[&queue], ONE).await, &["good"]).await;
}

/// Pages are oldest first without overlap; a requeued letter is a message again, a purge leaves none.
pub async fn dead_letters_page_requeue_and_purge(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    reject_all(broker, &queue, &["1", "2", "3", "4", "5"]).await;
    let first = letters(broker, &queue, None, 2).await;
    let second = letters(broker, &queue, Some(&first[1].id), 2).await;
    let third = letters(broker, &queue, Some(&second[1].id), 2).await;
    assert_eq!([messages(&first), messages(&second), messages(&third)], [vec!["1", "2"], vec!["3", "4"], vec!["5"]]);
    assert_eq!(letters(broker, &queue, Some(&third[0].id), 2).await, []);

    publish(broker, &queue, &["ahead"]).await;
    let requeue = async |id: &str| soon("requeue", broker.requeue_dead_letter(&queue, id)).await.expect("requeue");
    assert!(requeue(&second[0].id).await);
    assert!(!requeue(&second[0].id).await, "a letter was requeued twice");
    assert_eq!(messages(&letters(broker, &queue, None, 10).await), ["1", "2", "4", "5"]);
    // a page goes on also after a letter that is gone
    assert_eq!(messages(&letters(broker, &queue, Some(&second[0].id), 10).await), ["4", "5"]);
    let mut consumer = consume(broker, &[&queue], ONE).await;
    ack(take(&mut *consumer, "ahead").await).await;
    ack(take(&mut *consumer, "3").await).await;

    assert_eq!(soon("purge", broker.purge_dead_letters(&queue)).await.expect("purge"), 4);
    assert_eq!(letters(broker, &queue, None, 10).await, []);
    assert!(!requeue(&first[0].id).await, "a purged letter was requeued");
    depth_becomes(broker, &queue, Depth::default()).await;
}

/// Listing, requeueing and purging stay within the queue named.
pub async fn dead_letters_of_one_queue_are_not_those_of_another(backend: Backend) {
    let (broker, mine, other) = (backend.broker(), name("mine"), name("other"));
    reject_all(broker, &mine, &["mine"]).await;
    reject_all(broker, &other, &["other 1", "other 2"]).await;
    assert_eq!(messages(&letters(broker, &mine, None, 10).await), ["mine"]);
    assert_eq!(soon("purge", broker.purge_dead_letters(&mine)).await.expect("purge"), 1);
    assert_eq!(messages(&letters(broker, &other, None, 10).await), ["other 1", "other 2"]);
}
