// Command demo plays the whole story in one terminal, in under a minute, with the built programs and a real Mosquitto on free ports: a
// factory's birth CA, one device with a birth certificate and one with an enrollment code, telemetry over mutual TLS, and a
// revocation that ends a live session. "make demo" runs it. It leaves nothing behind; with -keep DIR it leaves all files and logs there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	keep := flag.String("keep", "", "keep all files and logs in this directory (must not exist)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := play(ctx, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func play(ctx context.Context, keep string) error {
	for program, pkg := range map[string]string{"mosquitto": "mosquitto", "mosquitto_sub": "mosquitto-clients"} {
		if _, err := lookPath(program); err != nil {
			return fmt.Errorf("%s is not installed (Debian: apt-get install %s)", program, pkg)
		}
	}
	dir := keep
	if keep == "" {
		var err error
		if dir, err = os.MkdirTemp("", "natal-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the broker runs as a user of its own
		return err
	}
	s := &stage{ctx: ctx, dir: dir, begun: time.Now()}
	defer s.stop()
	return s.story()
}

// lookPath also finds what Debian keeps outside a user's PATH.
func lookPath(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + program)
}

// built finds one of our programs: in NATAL_BIN, else in bin/.
func built(program string) string {
	dir := os.Getenv("NATAL_BIN")
	if dir == "" {
		dir = "bin"
	}
	path, err := filepath.Abs(filepath.Join(dir, program))
	if err != nil {
		return filepath.Join(dir, program)
	}
	return path
}
