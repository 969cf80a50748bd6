// The common script with lib/pq and with pgx (through database/sql). Usage: main postgres|pgx, with the rest from the
// environment.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	_ "github.com/jackc/pgx/v4/stdlib"
	"github.com/lib/pq"
)

func say(step string, value interface{}) {
	line, _ := json.Marshal([]interface{}{step, value})
	fmt.Println(string(line))
}

func failing(step string, err error) {
	switch e := err.(type) {
	case *pq.Error:
		say(step, []string{string(e.Code), e.Message})
	case *pgconn.PgError:
		say(step, []string{e.Code, e.Message})
	default:
		say(step, fmt.Sprint(err))
	}
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// What pgx has beyond database/sql: batches, COPY, its statement caches and the simple protocol.
func native(table string) {
	ctx := context.Background()
	for _, mode := range []string{"prepare", "describe"} {
		c, err := pgx.Connect(ctx, "statement_cache_mode="+mode)
		must(err)
		n, err := c.CopyFrom(ctx, pgx.Identifier{table}, []string{"id", "word"}, pgx.CopyFromRows([][]interface{}{{1000, "a"}, {1001, "b"}}))
		must(err)
		say("copied "+mode, n)
		batch := &pgx.Batch{}
		for i := 0; i < 5; i++ {
			batch.Queue("select $1::int * 2", i)
		}
		batch.Queue("delete from "+table+" where id >= $1", 1000)
		results := c.SendBatch(ctx, batch)
		for i := 0; i < 5; i++ {
			var doubled int
			must(results.QueryRow().Scan(&doubled))
			say("batch "+mode, doubled)
		}
		tag, err := results.Exec()
		must(err)
		say("batch "+mode, tag.String())
		must(results.Close())
		broken := &pgx.Batch{}
		broken.Queue("insert into " + table + " values (1002)")
		broken.Queue("select 1/0")
		failing("broken batch "+mode, c.SendBatch(ctx, broken).Close())
		var count, simple int
		must(c.QueryRow(ctx, "select count(*) from "+table+" where id = 1002").Scan(&count))
		must(c.QueryRow(ctx, "select $1::int + 1", pgx.QuerySimpleProtocol(true), 41).Scan(&simple))
		say("after it "+mode, []int{count, simple})
		tx, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable})
		must(err)
		var level, only string
		must(tx.QueryRow(ctx, "show transaction_isolation").Scan(&level))
		must(tx.QueryRow(ctx, "show transaction_read_only").Scan(&only))
		_, err = tx.Exec(ctx, "insert into "+table+" values (1003)")
		failing("read only "+mode, err)
		must(tx.Rollback(ctx))
		say("options "+mode, []string{level, only})
		_, err = c.Exec(ctx, "listen tidings")
		must(err)
		_, err = c.Exec(ctx, "notify tidings, 'news'")
		must(err)
		note, err := c.WaitForNotification(ctx)
		must(err)
		say("notification "+mode, []string{note.Channel, note.Payload})
		must(c.Close(ctx))
	}
}

func main() {
	say("version", "Go "+runtime.Version()+", as packaged")
	driver, table := os.Args[1], "matrix_"+os.Args[1]
	db, err := sql.Open(driver, "")
	must(err)
	defer db.Close()
	act := func(q string, args ...interface{}) { _, err := db.Exec(q, args...); must(err) }
	text := func(step, q string, args ...interface{}) {
		var s sql.NullString
		must(db.QueryRow(q, args...).Scan(&s))
		say(step, s)
	}
	act("drop table if exists " + table)
	act("create table " + table + "(id int primary key, word text)")
	for i := 0; i < 20; i++ {
		act("insert into "+table+" values ($1, $2)", i, fmt.Sprint("wörd ", i))
	}
	rows, err := db.Query("select id, word from " + table + " order by id limit 3")
	must(err)
	for rows.Next() {
		var id int
		var word string
		must(rows.Scan(&id, &word))
		say("row", []interface{}{id, word})
	}
	text("types", "select row(1::int2, 2::int8, 1.5::float8, true, null, '2026-01-02'::date, array[1,2], $1::text)::text", "q'\\")
	statement, err := db.Prepare("select word from " + table + " where id = $1")
	must(err)
	for i := 0; i < 5; i++ {
		var word string
		must(statement.QueryRow(i).Scan(&word))
		say("prepared", word)
	}
	_, err = db.Exec("insert into " + table + " values (1)")
	failing("unique", err)
	_, err = db.Exec("selec 1")
	failing("syntax", err)
	_, err = db.Exec("select 1/$1::int", 0)
	failing("division", err)
	tx, err := db.Begin()
	must(err)
	_, err = tx.Exec("update " + table + " set word = 'changed' where id = 3")
	must(err)
	_, err = tx.Exec("savepoint s")
	must(err)
	_, err = tx.Exec("select 1/0")
	failing("within", err)
	_, err = tx.Exec("rollback to s")
	must(err)
	must(tx.Rollback())
	text("rolled back", "select word from "+table+" where id = 3")
	if driver == "postgres" {
		tx, err = db.Begin()
		must(err)
		in, err := tx.Prepare(pq.CopyIn(table, "id", "word"))
		must(err)
		for i := 100; i < 2100; i++ {
			_, err = in.Exec(i, "copied")
			must(err)
		}
		_, err = in.Exec()
		must(err)
		must(in.Close())
		must(tx.Commit())
		text("copied", "select count(*) from "+table)
		l := pq.NewListener("", time.Second, time.Second, nil)
		must(l.Listen("tidings"))
		act("notify tidings, 'news'")
		select {
		case n := <-l.Notify:
			say("notification", []string{n.Channel, n.Extra})
		case <-time.After(20 * time.Second):
			say("notification", "none")
		}
		l.Close()
	}
	if driver == "pgx" {
		native(table)
	}
	text("large", "select md5($1::text)", strings.Repeat("b", 3000000))
	text("large result", "select length(repeat('r', 5000000))::text")
	one, err := db.Conn(context.Background())
	must(err)
	for _, q := range []string{"set timezone = 'Asia/Tokyo'", "create temp table mine(x int)", "insert into mine values (1), (2)"} {
		_, err = one.ExecContext(context.Background(), q)
		must(err)
	}
	var zone, sum string
	must(one.QueryRowContext(context.Background(), "show timezone").Scan(&zone))
	must(one.QueryRowContext(context.Background(), "select sum(x)::text from mine").Scan(&sum))
	say("session", []string{zone, sum})
	one.Close()
	limited, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, err = db.ExecContext(limited, "select pg_sleep(60)")
	say("cancelled", err != nil)
	text("afterwards", "select 'on'")
	var wait sync.WaitGroup
	sums := make([]int, 20)
	for i := range sums {
		wait.Add(1)
		go func(i int) { defer wait.Done(); db.QueryRow("select $1::int", i).Scan(&sums[i]) }(i)
	}
	wait.Wait()
	say("at once", sums)
	act("drop table " + table)
}
