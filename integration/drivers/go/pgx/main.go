// What applications do with pgx, for each way in which it can send a statement.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgconn/stmtcache"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

var ctx = context.Background()

func check(name string, result interface{}, err error) {
	value := map[string]interface{}{"case": name}
	var e *pgconn.PgError
	if errors.As(err, &e) {
		value["error"] = map[string]string{"sqlstate": e.Code, "message": e.Message}
	} else if err != nil {
		value["error"] = map[string]string{"sqlstate": "", "message": err.Error()}
	} else {
		value["result"] = result
	}
	text, err := json.Marshal(value)
	must(err)
	fmt.Println(string(text))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type asker interface {
	Query(context.Context, string, ...interface{}) (pgx.Rows, error)
}

func ask(c asker, q string, args ...interface{}) (string, error) {
	rows, err := c.Query(ctx, q, args...)
	if err != nil {
		return "", err
	}
	return collect(rows)
}

func collect(rows pgx.Rows) (string, error) {
	defer rows.Close()
	var all strings.Builder
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return "", err
		}
		fmt.Fprint(&all, values, ";")
	}
	return all.String(), rows.Err()
}

func script(way string, set func(*pgx.ConnConfig)) {
	say := func(name string, result interface{}, err error) { check(way+": "+name, result, err) }
	config, err := pgx.ParseConfig("")
	must(err)
	var notices []string
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Severity+n.Message) }
	set(config)
	c, err := pgx.ConnectConfig(ctx, config)
	must(err)
	defer c.Close(ctx)
	act := func(name, q string, args ...interface{}) {
		t, err := c.Exec(ctx, q, args...)
		say(name, t.String(), err)
	}
	text := func(name, q string, args ...interface{}) { s, err := ask(c, q, args...); say(name, s, err) }
	act("drop", "drop table if exists matrix_pgx")
	act("create", "create table matrix_pgx(id int primary key, word text)")
	for i := 0; i < 20; i++ {
		act("insert", "insert into matrix_pgx values ($1, $2)", i, fmt.Sprint("wörd ", i))
	}
	text("rows", "select id, word from matrix_pgx order by id limit 3")
	for i := 0; i < 8; i++ {
		text("repeated", "select word from matrix_pgx where id = $1", i)
	}
	text("types", "select 1::int2, 2::int8, 1.5::float8, true, null, '\\x0102'::bytea, $1::text", "q'\\")
	act("empty", "")
	act("many statements", "select 1; select 2; update matrix_pgx set word = word where id < 3")
	_, err = c.Prepare(ctx, "named", "select word from matrix_pgx where id = $1")
	say("prepare", nil, err)
	for i := 0; i < 8; i++ {
		text("named", "named", i)
	}
	say("deallocate", nil, c.Deallocate(ctx, "named"))
	_, err = c.Prepare(ctx, "bad", "selec 1")
	say("prepare of an error", nil, err)
	act("unique", "insert into matrix_pgx values ($1)", 1)
	act("syntax", "selec 1")
	text("division", "select 1/$1::int", 0)
	transactions(c, say)
	batches(c, say)
	copies(c, say)
	text("large", "select md5($1::text)", strings.Repeat("b", 3000000))
	text("large result", "select length(repeat('r', 5000000)::text)")
	act("set", "set timezone = 'Asia/Tokyo'")
	text("show", "show timezone")
	say("parameter", c.PgConn().ParameterStatus("TimeZone"), nil)
	act("reset", "reset timezone")
	act("temp", "create temp table mine(x int)")
	act("temp rows", "insert into mine values (1), ($1)", 2)
	text("temp sum", "select sum(x) from mine")
	act("temp drop", "drop table mine")
	act("notices", "do $$ begin raise notice 'hello'; raise warning 'careful'; end $$")
	say("notices", notices, nil)
	act("listen", "listen tidings")
	act("notify", "select pg_notify('tidings', $1)", "news")
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	n, err := c.WaitForNotification(limited)
	cancel()
	if err == nil {
		say("notification", []string{n.Channel, n.Payload}, nil)
	} else {
		say("notification", nil, err)
	}
	act("unlisten", "unlisten *")
	act("ddl", "alter table matrix_pgx add more int default 7")
	text("after ddl", "select * from matrix_pgx where id = $1", 2)
	act("drop", "drop table matrix_pgx")
	limited, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
	_, err = c.Exec(limited, "select pg_sleep(60)")
	cancel()
	say("timeout", pgconn.Timeout(err), nil)
	// pgx cancels at the server in the background, and closes.
	say("closed", c.IsClosed(), nil)
}

func transactions(c *pgx.Conn, say func(string, interface{}, error)) {
	for _, o := range []pgx.TxOptions{{}, {IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable}, {IsoLevel: pgx.RepeatableRead}} {
		tx, err := c.BeginTx(ctx, o)
		must(err)
		s, err := ask(tx, "select current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('transaction_deferrable')")
		say("options", s, err)
		_, err = tx.Exec(ctx, "update matrix_pgx set word = 'changed' where id = 3")
		say("update", nil, err)
		if err == nil {
			inner, err := tx.Begin(ctx)
			must(err)
			_, err = inner.Exec(ctx, "select 1/$1::int", 0)
			say("within", nil, err)
			_, err = inner.Exec(ctx, "select 1")
			say("aborted", nil, err)
			say("inner rollback", nil, inner.Rollback(ctx))
			s, err = ask(tx, "select word from matrix_pgx where id = $1", 3)
			say("after it", s, err)
		}
		say("rollback", nil, tx.Rollback(ctx))
		s, err = ask(c, "select word from matrix_pgx where id = 3")
		say("rolled back", s, err)
	}
}

func batches(c *pgx.Conn, say func(string, interface{}, error)) {
	run := func(name string, queries ...string) {
		b := &pgx.Batch{}
		for i, q := range queries {
			if strings.Contains(q, "$1") {
				b.Queue(q, i)
			} else {
				b.Queue(q)
			}
		}
		r := c.SendBatch(ctx, b)
		for range queries {
			rows, err := r.Query()
			s := ""
			if err == nil {
				s, err = collect(rows)
			}
			say(name, s, err)
		}
		say(name+" closed", nil, r.Close())
	}
	run("batch", "select $1::int + 1", "insert into matrix_pgx values (60 + $1::int, 'in a batch') returning id", "select word from matrix_pgx where id = $1", "select 'plain'")
	run("batch that fails", "insert into matrix_pgx values (70 + $1::int) returning id", "select 1/$1::int - 1/($1::int - 1)", "select 3")
	s, err := ask(c, "select count(*) from matrix_pgx where id >= 60")
	say("after the batches", s, err)
	run("batch with a block", "begin", "insert into matrix_pgx values (80 + $1::int)", "select count(*) from matrix_pgx where id > 79", "rollback", "select count(*) from matrix_pgx where id > 79")
}

func copies(c *pgx.Conn, say func(string, interface{}, error)) {
	rows := [][]interface{}{}
	for i := 100; i < 2100; i++ {
		rows = append(rows, []interface{}{int32(i), "copied"})
	}
	n, err := c.CopyFrom(ctx, pgx.Identifier{"matrix_pgx"}, []string{"id", "word"}, pgx.CopyFromRows(rows))
	say("copy from", n, err)
	n, err = c.CopyFrom(ctx, pgx.Identifier{"matrix_pgx"}, []string{"id", "word"}, pgx.CopyFromRows(rows[:3]))
	say("copy of duplicates", n, err)
	_, err = c.CopyFrom(ctx, pgx.Identifier{"matrix_pgx"}, []string{"id"}, pgx.CopyFromSlice(3, func(i int) ([]interface{}, error) {
		if i == 2 {
			return nil, errors.New("of the client")
		}
		return []interface{}{int32(5000 + i)}, nil
	}))
	say("copy that gives up", nil, err)
	var out bytes.Buffer
	tag, err := c.PgConn().CopyTo(ctx, &out, "copy (select id from matrix_pgx order by id) to stdout")
	say("copy to", fmt.Sprint(tag, out.Len()), err)
}

func pool() {
	config, err := pgxpool.ParseConfig("")
	must(err)
	config.MaxConns = 8
	p, err := pgxpool.ConnectConfig(ctx, config)
	must(err)
	defer p.Close()
	var wait sync.WaitGroup
	said := make([]string, 16)
	for i := range said {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			must(p.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
				if _, err := c.Exec(ctx, "select set_config('matrix.mine', $1, false)", fmt.Sprint(i)); err != nil {
					return err
				}
				for n := 0; n < 20; n++ {
					s, err := ask(c, "select current_setting('matrix.mine'), $1::int", n)
					if err != nil {
						return err
					}
					said[i] += s
				}
				return nil
			}))
		}(i)
	}
	wait.Wait()
	for i, s := range said {
		check(fmt.Sprint("together ", i), s, nil)
	}
}

func main() {
	fmt.Println(`["version", "Debian's, on ` + runtime.Version() + `"]`)
	cache := func(mode int, capacity int) func(*pgx.ConnConfig) {
		return func(c *pgx.ConnConfig) {
			c.BuildStatementCache = func(conn *pgconn.PgConn) stmtcache.Cache { return stmtcache.New(conn, mode, capacity) }
		}
	}
	script("prepare", cache(stmtcache.ModePrepare, 512))
	script("prepare two", cache(stmtcache.ModePrepare, 2))
	script("describe", cache(stmtcache.ModeDescribe, 512))
	script("no cache", func(c *pgx.ConnConfig) { c.BuildStatementCache = nil })
	script("simple", func(c *pgx.ConnConfig) { c.PreferSimpleProtocol = true })
	pool()
	c, err := pgx.ParseConfig("password=wrong")
	must(err)
	_, err = pgx.ConnectConfig(ctx, c)
	check("wrong password", nil, err)
}
