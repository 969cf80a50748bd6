// What applications do with lib/pq.
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

	"github.com/lib/pq"
)

func line(value map[string]interface{}) {
	text, _ := json.Marshal(value)
	fmt.Println(string(text))
}

func check(name string, result interface{}, err error) {
	if e, ok := err.(*pq.Error); ok {
		line(map[string]interface{}{"case": name, "error": map[string]string{"sqlstate": string(e.Code), "message": e.Message}})
	} else if err != nil {
		line(map[string]interface{}{"case": name, "error": map[string]string{"sqlstate": "", "message": err.Error()}})
	} else {
		line(map[string]interface{}{"case": name, "result": result})
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var ctx = context.Background()

func ask(c *sql.Conn, q string, args ...interface{}) (string, error) {
	rows, err := c.QueryContext(ctx, q, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var all strings.Builder
	for {
		names, _ := rows.Columns()
		for rows.Next() {
			values := make([]interface{}, len(names))
			for i := range values {
				values[i] = new(sql.NullString)
			}
			if err := rows.Scan(values...); err != nil {
				return "", err
			}
			for _, v := range values {
				fmt.Fprint(&all, v.(*sql.NullString).String, v.(*sql.NullString).Valid, "|")
			}
		}
		if !rows.NextResultSet() {
			break
		}
		all.WriteString("/")
	}
	return all.String(), rows.Err()
}

func script(way string, options string) {
	say := func(name string, result interface{}, err error) { check(way+": "+name, result, err) }
	db, err := sql.Open("postgres", options)
	must(err)
	defer db.Close()
	c, err := db.Conn(ctx)
	must(err)
	defer c.Close()
	act := func(name, q string, args ...interface{}) {
		r, err := c.ExecContext(ctx, q, args...)
		n := int64(0)
		if err == nil {
			n, _ = r.RowsAffected()
		}
		say(name, n, err)
	}
	text := func(name, q string, args ...interface{}) { s, err := ask(c, q, args...); say(name, s, err) }
	act("drop", "drop table if exists matrix_pq")
	act("create", "create table matrix_pq(id int primary key, word text)")
	for i := 0; i < 20; i++ {
		act("insert", "insert into matrix_pq values ($1, $2)", i, fmt.Sprint("wörd ", i))
	}
	text("rows", "select id, word from matrix_pq order by id limit 3")
	text("types", "select 1::int2, 2::int8, 1.5::float8, true, null, '2026-01-02'::date, array[1,2], '\\x0102'::bytea, $1::text", "q'\\")
	text("array", "select $1::int[]", pq.Array([]int{1, 2, 3}))
	text("bytes", "select encode($1::bytea, 'hex')", []byte{0, 1, 255})
	text("time", "select $1::timestamptz at time zone 'UTC'", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	text("many statements", "select 1; select 'b'; select 3 where false")
	text("empty", "")
	statement, err := c.PrepareContext(ctx, "select word from matrix_pq where id = $1")
	must(err)
	for i := 0; i < 8; i++ {
		var word string
		err := statement.QueryRow(i).Scan(&word)
		say("prepared", word, err)
	}
	act("unique", "insert into matrix_pq values (1)")
	act("syntax", "selec 1")
	text("division", "select 1/$1::int", 0)
	text("bad parameter", "select $1::int", "not a number")
	tx, err := c.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
	must(err)
	var got string
	say("isolation", &got, tx.QueryRow("show transaction_isolation").Scan(&got))
	_, err = tx.Exec("update matrix_pq set word = 'changed' where id = $1", 3)
	say("update", nil, err)
	_, err = tx.Exec("savepoint s")
	say("savepoint", nil, err)
	_, err = tx.Exec("select 1/0")
	say("within", nil, err)
	_, err = tx.Exec("select $1::int", 1)
	say("aborted", nil, err)
	_, err = tx.Exec("rollback to s")
	say("rollback to", nil, err)
	say("in it", &got, tx.Stmt(statement).QueryRow(3).Scan(&got))
	say("rollback", nil, tx.Rollback())
	text("rolled back", "select word from matrix_pq where id = 3")
	tx, err = c.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	must(err)
	_, err = tx.Exec("insert into matrix_pq values (50)")
	say("read only", nil, err)
	say("commit of what failed", nil, tx.Commit())
	copies(c, say)
	text("copied", "select count(*), sum(id) from matrix_pq")
	text("large", "select md5($1::text)", strings.Repeat("b", 3000000))
	text("large result", "select length(repeat('r', 5000000)), right(repeat('r', 3000000), 3)")
	act("set", "set timezone = 'Asia/Tokyo'")
	text("show", "show timezone")
	act("reset", "reset timezone")
	act("temp", "create temp table mine(x int)")
	act("temp rows", "insert into mine values (1), ($1)", 2)
	text("temp sum", "select sum(x) from mine")
	act("discard", "discard all")
	text("temp gone", "select sum(x) from mine")
	text("prepared after discard", "select $1::int + 1", 4)
	act("ddl", "alter table matrix_pq add more int default 7")
	text("after ddl", "select * from matrix_pq where id = $1", 2)
	limited, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
	_, err = c.ExecContext(limited, "select pg_sleep(60)")
	cancel()
	say("cancelled", nil, err)
	text("afterwards", "select 'on'")
	act("drop", "drop table matrix_pq")
}

func copies(c *sql.Conn, say func(string, interface{}, error)) {
	tx, err := c.BeginTx(ctx, nil)
	must(err)
	in, err := tx.Prepare(pq.CopyIn("matrix_pq", "id", "word"))
	must(err)
	for i := 100; i < 2100; i++ {
		_, err = in.Exec(i, "copied")
		must(err)
	}
	r, err := in.Exec()
	must(err)
	n, _ := r.RowsAffected()
	say("copy", n, err)
	say("copy closed", nil, in.Close())
	say("copy committed", nil, tx.Commit())
	tx, err = c.BeginTx(ctx, nil)
	must(err)
	in, err = tx.Prepare(pq.CopyIn("matrix_pq", "id", "word"))
	must(err)
	_, err = in.Exec(1, "twice")
	must(err)
	_, err = in.Exec()
	say("copy of a duplicate", nil, err)
	in.Close()
	say("its rollback", nil, tx.Rollback())
}

func listener() {
	l := pq.NewListener("", time.Second, time.Second, nil)
	check("listen", nil, l.Listen("tidings"))
	check("listen twice", nil, l.Listen("more"))
	db, err := sql.Open("postgres", "")
	must(err)
	_, err = db.Exec("notify tidings, 'news'; notify more; notify nobody")
	check("notify", nil, err)
	for i := 0; i < 2; i++ {
		select {
		case n := <-l.Notify:
			check("notification", []string{n.Channel, n.Extra}, nil)
		case <-time.After(20 * time.Second):
			check("notification", "none", nil)
		}
	}
	check("ping", nil, l.Ping())
	check("unlisten", nil, l.UnlistenAll())
	check("close", nil, l.Close())
	db.Close()
}

func together() {
	var wait sync.WaitGroup
	said := make([]string, 8)
	for i := range said {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			db, err := sql.Open("postgres", "")
			must(err)
			defer db.Close()
			c, err := db.Conn(ctx)
			must(err)
			_, err = c.ExecContext(ctx, fmt.Sprintf("set matrix.mine = '%d'", i))
			must(err)
			for n := 0; n < 25; n++ {
				s, err := ask(c, "select current_setting('matrix.mine'), $1::int", n)
				must(err)
				said[i] += s
			}
			c.Close()
		}(i)
	}
	wait.Wait()
	for i, s := range said {
		check(fmt.Sprint("together ", i), s, nil)
	}
}

func main() {
	fmt.Println(`["version", "Debian's, on ` + runtime.Version() + `"]`)
	script("text", "")
	script("binary", "binary_parameters=yes")
	listener()
	together()
	db, err := sql.Open("postgres", "password=wrong")
	must(err)
	check("wrong password", nil, db.Ping())
}
