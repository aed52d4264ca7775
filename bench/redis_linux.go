package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// redisGuard runs a server until its standard input ends, which is when the process that started it ends, however
// that ends; then it leaves nothing of the server and its directory.
const redisGuard = `cd "$1" || exit
redis-server --port 0 --unixsocket "$1/socket" --save "" --appendonly no --dir "$1" --loglevel warning >/dev/null 2>&1 &
cat >/dev/null
kill -9 $! 2>/dev/null
wait
rm -rf "$1"`

// redis is the server that all cases share, from the first that needs it until [Close].
var redis struct {
	sync.Mutex
	socket string
}

func needRedis() error {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return errors.New("bench: there is no redis-server")
	}
	return nil
}

// redisSocket starts the server if there is none.
func redisSocket(ctx context.Context) (string, error) {
	redis.Lock()
	defer redis.Unlock()
	if redis.socket != "" {
		return redis.socket, nil
	}
	dir, err := os.MkdirTemp("", "shmkit-bench")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("sh", "-c", redisGuard, "sh", dir)
	ownGroup(cmd)
	cmd.Cancel = nil // there is no context: its input ends it
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	end := func() {
		in.Close()
		cmd.Wait()
	}
	socket := filepath.Join(dir, "socket")
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			break
		}
		if ctx.Err() != nil || time.Since(begin) > 30*time.Second {
			end()
			return "", errors.Join(context.Cause(ctx), fmt.Errorf("bench: redis-server does not answer: %w", err))
		}
	}
	redis.socket = socket
	onClose(func() {
		redis.Lock()
		defer redis.Unlock()
		redis.socket = ""
		end()
	})
	return socket, nil
}

// A redisConn is a client: one call, one answer.
type redisConn struct {
	net.Conn
	in  *bufio.Reader
	out []byte
}

func dialRedis(ctx context.Context) (*redisConn, error) {
	socket, err := redisSocket(ctx)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return &redisConn{Conn: c, in: bufio.NewReader(c)}, nil
}

func (c *redisConn) do(words ...string) (string, error) {
	c.out = fmt.Appendf(c.out[:0], "*%d\r\n", len(words))
	for _, w := range words {
		c.out = strconv.AppendInt(append(c.out, '$'), int64(len(w)), 10)
		c.out = append(append(append(c.out, "\r\n"...), w...), "\r\n"...)
	}
	if _, err := c.Write(c.out); err != nil {
		return "", err
	}
	return c.answer()
}

// answer reads one; of a list, its last element.
func (c *redisConn) answer() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return "", errors.New("bench: Redis answered nothing")
	}
	switch kind, rest := line[0], line[1:]; kind {
	case '+', ':':
		return rest, nil
	case '$', '*':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", fmt.Errorf("bench: Redis answered %q", line)
		}
		if kind == '*' {
			last := ""
			for range n {
				if last, err = c.answer(); err != nil {
					return "", err
				}
			}
			return last, nil
		}
		text := make([]byte, n+2)
		_, err = io.ReadFull(c.in, text)
		return string(text[:n]), err
	}
	return "", fmt.Errorf("bench: Redis answered %q", line)
}

// peerRedis is a subject that calls a server through its Unix socket, one call after the other: RPUSH of a text,
// INCR, GET and SET at many keys; BRPOP of messages of a size, which another goroutine pushes.
func peerRedis(by string, call ...string) Subject {
	return Subject{By: by, Role: Peer, Slow: true, Need: needRedis, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		c, err := dialRedis(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if _, err := c.do("FLUSHALL"); err != nil {
			return nil, err
		}
		if call[0] == "BRPOP" {
			return passRedis(ctx, c, window, call[1])
		}
		return alone(func() (batch, error) { return c.batch(call) })(ctx, window)
	}}
}

func (c *redisConn) batch(call []string) (batch, error) {
	done := 0
	expect := func(want string, words ...string) error {
		if got, err := c.do(words...); err != nil || got != want {
			return errors.Join(err, fmt.Errorf("bench: Redis answers %.40q to %s, not %q", got, words[0], want))
		}
		return nil
	}
	one := func() error {
		switch done++; call[0] {
		case "RPUSH":
			return expect(strconv.Itoa(done), "RPUSH", "list", call[1])
		case "INCR":
			return expect(strconv.Itoa(done), "INCR", "number")
		case "SET":
			return expect("OK", "SET", strconv.FormatInt(scattered(done, keyed), 10), strconv.Itoa(done))
		}
		k := strconv.FormatInt(scattered(done, keyed), 10)
		return expect(k, "GET", k)
	}
	if call[0] == "SET" || call[0] == "GET" {
		words := []string{"MSET"}
		for k := range keyed {
			words = append(words, strconv.Itoa(k), strconv.Itoa(k))
		}
		if err := expect("OK", words...); err != nil {
			return batch{}, err
		}
	}
	return batch{calls: func(n int) error {
		for range n {
			if err := one(); err != nil {
				return err
			}
		}
		if call[0] == "SET" {
			return expect(strconv.Itoa(done), "GET", strconv.FormatInt(scattered(done, keyed), 10))
		}
		return nil
	}}, nil
}

// passRedis passes numbered messages through a list until the window is over.
func passRedis(ctx context.Context, c *redisConn, window time.Duration, size string) (_ *Sample, err error) {
	n, err := strconv.Atoi(size)
	if err != nil {
		return nil, err
	}
	to, err := dialRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		message := make([]byte, n)
		for count := uint64(1); ; count++ {
			select {
			case <-stop:
				_, err := to.do("LPUSH", "queue", "end")
				ended <- err
				return
			default:
			}
			binary.NativeEndian.PutUint64(message, count)
			if _, err := to.do("LPUSH", "queue", string(message)); err != nil {
				c.Close() // nobody waits for what does not come
				ended <- err
				return
			}
		}
	}()
	defer func() { err = errors.Join(err, <-ended) }()
	stopped := false
	defer func() {
		if !stopped {
			close(stop)
		}
	}()
	s := &Sample{CPU: -1, Switches: -1, Bytes: int64(n)}
	begin := time.Now()
	for {
		text, err := c.do("BRPOP", "queue", "0")
		switch {
		case err != nil:
			return nil, err
		case text == "end":
			return s, nil
		case len(text) != n || binary.NativeEndian.Uint64([]byte(text)) != uint64(s.Total)+1:
			return nil, fmt.Errorf("bench: Redis: message %d is another one, of %d bytes", s.Total+1, len(text))
		}
		s.Total++
		if d := time.Since(begin); !stopped && (d >= window || ctx.Err() != nil) {
			s.Ops, s.Elapsed, stopped = s.Total, d, true
			close(stop)
		}
	}
}
