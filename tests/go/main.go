// A client with franz-go: appends the lines of standard input to a topic, lists the topic, and prints all lines that
// it has, each with its key.
//
//	go run . SERVER TOPIC
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func main() {
	if len(os.Args) != 3 {
		check(fmt.Errorf("usage: go run . SERVER TOPIC"))
	}
	server, topic := os.Args[1], os.Args[2]
	// Only ends what hangs.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(server),
		kgo.AllowAutoTopicCreation(),
		// The small broker knows neither producers' ids nor compression.
		kgo.DisableIdempotentWrite(),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}),
	)
	check(err)
	defer client.Close()

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		record := &kgo.Record{Topic: topic, Key: []byte("carol"), Value: []byte(lines.Text())}
		check(client.ProduceSync(ctx, record).FirstErr())
	}
	check(lines.Err())

	left := end(ctx, client, topic)
	fmt.Printf("%s has %d lines\n", topic, left)
	for left > 0 {
		fetches := client.PollFetches(ctx)
		for _, failed := range fetches.Errors() {
			check(failed.Err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			fmt.Printf("%s: %s\n", record.Key, record.Value)
			left--
		})
	}
}

// end returns the offset of the next line of a topic.
func end(ctx context.Context, client *kgo.Client, topic string) int64 {
	partition := kmsg.NewListOffsetsRequestTopicPartition()
	partition.Timestamp = -1
	asked := kmsg.NewListOffsetsRequestTopic()
	asked.Topic = topic
	asked.Partitions = append(asked.Partitions, partition)
	request := kmsg.NewListOffsetsRequest()
	request.ReplicaID = -1
	request.Topics = append(request.Topics, asked)
	response, err := request.RequestWith(ctx, client)
	check(err)
	return response.Topics[0].Partitions[0].Offset
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "franz-go:", err)
		os.Exit(1)
	}
}
