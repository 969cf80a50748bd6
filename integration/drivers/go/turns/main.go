// Turns with pgx or lib/pq, until the file MATRIX_STOP exists. See turns.rs. Usage: turns pgx|lib/pq
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/lib/pq"
)

var ctx = context.Background()
var name = os.Args[1]

const (
	insert = "insert into matrix_turns values ($1, $2)"
	count  = "select count(*) from matrix_turns where driver = $1 and turn = $2"
)

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// One connection of a driver. A turn is the error that it ended with, or for a read what it has seen.
type turns interface {
	connect() error
	write(turn int) error
	block(turn int) error
	read(last int) (int, error)
	closed(err error) bool
}

type native struct{ c *pgx.Conn }

func (n *native) connect() (err error) { n.c, err = pgx.Connect(ctx, ""); return }
func (n *native) write(turn int) error { _, err := n.c.Exec(ctx, insert, name, turn); return err }
func (n *native) block(turn int) error {
	return n.c.BeginFunc(ctx, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, insert, name, turn); return err })
}
func (n *native) read(last int) (seen int, err error) {
	err = n.c.QueryRow(ctx, count, name, last).Scan(&seen)
	return
}
func (n *native) closed(error) bool { return n.c.IsClosed() }

type standard struct {
	db *sql.DB
	c  *sql.Conn
}

func (s *standard) connect() (err error) {
	if s.db == nil {
		s.db, err = sql.Open("postgres", "")
		must(err)
	}
	s.c, err = s.db.Conn(ctx)
	return
}
func (s *standard) write(turn int) error { _, err := s.c.ExecContext(ctx, insert, name, turn); return err }
func (s *standard) block(turn int) error {
	tx, err := s.c.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err = tx.Exec(insert, name, turn); err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit()
}
func (s *standard) read(last int) (seen int, err error) {
	err = s.c.QueryRowContext(ctx, count, name, last).Scan(&seen)
	return
}
func (s *standard) closed(err error) bool {
	var ours *pq.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || !errors.As(err, &ours)
}

func state(err error) string {
	var native *pgconn.PgError
	var standard *pq.Error
	if errors.As(err, &native) {
		return native.Code
	} else if errors.As(err, &standard) {
		return string(standard.Code)
	}
	return "-"
}

func main() {
	var d turns = &native{}
	if name == "lib/pq" {
		d = &standard{}
	}
	must(d.connect())
	last := -1
	for turn := 0; ; turn++ {
		if _, err := os.Stat(os.Getenv("MATRIX_STOP")); err == nil {
			return
		}
		kind, seen := []string{"write", "block", "read"}[turn%3], 1
		var err error
		switch kind {
		case "write":
			err = d.write(turn)
		case "block":
			err = d.block(turn)
		default:
			seen, err = d.read(last)
		}
		if err != nil {
			fmt.Println("error", turn, kind, state(err), strings.ReplaceAll(err.Error(), "\n", " "))
			if d.closed(err) {
				fmt.Println("closed", turn)
				must(d.connect())
			}
		} else if seen != 1 {
			fmt.Println("missing", turn, kind)
		} else {
			fmt.Println("ok", turn, kind)
			if kind != "read" {
				last = turn
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}
