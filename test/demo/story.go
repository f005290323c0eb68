// The story, step by step.

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func (s *stage) story() error {
	for _, step := range []func() error{s.server, s.factory, s.broker, s.birthDevice, s.codeDevice, s.telemetry, s.revocation, s.others} {
		if err := step(); err != nil {
			return err
		}
	}
	return s.say("done; every program stops now")
}

func (s *stage) server() error {
	if err := s.ports(); err != nil {
		return err
	}
	if _, err := s.start("est-server", built("est-server"), "run", "--data", s.path("data"), "--host", "localhost",
		"--est-listen", s.est, "--public-listen", s.public, "--admin-listen", s.admin, "--metrics-listen", s.metrics); err != nil {
		return err
	}
	if err := s.until("the EST server to be ready", func() bool { return answers("http://" + s.metrics + "/readyz") }); err != nil {
		return err
	}
	return s.say("root CA, issuing CA and EST server certificate made; EST serves at https://%s", s.est)
}

func (s *stage) factory() error {
	if err := makeBirth(s.path("birth-ca.pem"), s.path("birth.pem"), s.path("birth.key"), "SN-000001"); err != nil {
		return err
	}
	if err := s.cli("birth-ca", "add", "default", s.path("birth-ca.pem")); err != nil {
		return err
	}
	return s.say("the factory's birth CA is accepted; device SN-000001 left the factory with a birth certificate")
}

func (s *stage) broker() error {
	if err := s.cli("code", "create", "localhost", "--label", "bridge", "--san", "ip:127.0.0.1", "--out", s.path("bridge.code")); err != nil {
		return err
	}
	if err := s.run(built("broker-bridge"), "setup", "mosquitto", "--server", "https://"+s.est, "--code-file", s.path("bridge.code"), "--host", "localhost", "--san", "ip:127.0.0.1",
		"--trust", s.trust(), "--out", s.path("mosquitto"), "--topic", "write devices/{id}/telemetry", "--listen", s.mqtt, "--control-listen", s.control, "--metrics-listen", s.bridgeMetrics); err != nil {
		return err
	}
	// A back end of the operator's own listens on loopback, beside the two listeners of the bridge.
	if err := writeFile(s.path("mosquitto/conf.d/operator.conf"), fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\n", port(s.backend))); err != nil {
		return err
	}
	mosquitto, err := lookPath("mosquitto")
	if err != nil {
		return err
	}
	if _, err := s.start("mosquitto", mosquitto, "-c", s.path("mosquitto/mosquitto.conf")); err != nil {
		return err
	}
	if err := s.until("mosquitto to listen", func() bool { return listening(s.mqtt) && listening(s.backend) }); err != nil {
		return err
	}
	if _, err := s.start("broker-bridge", built("broker-bridge"), "run", "--config", s.path("mosquitto/bridge.yaml")); err != nil {
		return err
	}
	if err := s.until("the bridge to prove the broker", func() bool { return answers("http://" + s.bridgeMetrics + "/readyz") }); err != nil {
		return err
	}
	sub, err := lookPath("mosquitto_sub")
	if err != nil {
		return err
	}
	if s.backendLog, err = s.start("backend", sub, "-h", "127.0.0.1", "-p", port(s.backend), "-t", "devices/#", "-v"); err != nil {
		return err
	}
	return s.say("mosquitto runs on port %s; the bridge gave it certificate, trust, CRL and access list, and proved with canaries that it refuses what it must", port(s.mqtt))
}

func (s *stage) birthDevice() error {
	log, err := s.device("SN-000001", "--birth-cert", s.path("birth.pem"), "--birth-key", s.path("birth.key"))
	if err != nil {
		return err
	}
	s.first = log
	return s.say("SN-000001 booted, enrolled by its birth certificate and has an operational certificate")
}

func (s *stage) codeDevice() error {
	if err := s.cli("code", "create", "SN-000002", "--out", s.path("SN-000002.code")); err != nil {
		return err
	}
	log, err := s.device("SN-000002", "--code-file", s.path("SN-000002.code"))
	if err != nil {
		return err
	}
	s.second = log
	return s.say("SN-000002 booted, enrolled by its one-time code and has an operational certificate")
}

// device starts an agent on an empty directory, as a device does at its first boot.
func (s *stage) device(id string, credential ...string) (*logFile, error) {
	args := append([]string{"run", "--server", "https://" + s.est, "--dir", s.path(id), "--id", id, "--trust", s.trust(),
		"--mqtt", s.mqtt, "--mqtt-ca", s.trust(), "--mqtt-topic", "devices/{id}/telemetry", "--interval", "300ms"}, credential...)
	log, err := s.start(id, built("estclient-example"), args...)
	if err != nil {
		return nil, err
	}
	return log, s.until(id+" to enroll", func() bool {
		_, err := os.Stat(filepath.Join(s.path(id), "bundle.pem"))
		return err == nil
	})
}

func (s *stage) telemetry() error {
	if err := s.until("telemetry from both devices", func() bool {
		return s.backendLog.has("devices/SN-000001/telemetry") && s.backendLog.has("devices/SN-000002/telemetry")
	}); err != nil {
		return err
	}
	return s.say("both publish over mutual TLS; the back end received: %s", s.backendLog.last("devices/SN-000001/"))
}

func (s *stage) revocation() error {
	began := time.Now()
	if err := s.cli("device", "revoke", "SN-000001", "--reason", "keyCompromise"); err != nil {
		return err
	}
	if err := s.say("the operator revoked SN-000001"); err != nil {
		return err
	}
	if err := s.until("the live session to end", func() bool { return s.first.has("connection to the broker lost") }); err != nil {
		return err
	}
	if err := s.say("its live session was cut, %d ms after the command began", time.Since(began).Milliseconds()); err != nil {
		return err
	}
	if err := s.until("the reconnection to be refused", func() bool { return s.first.has("certificate_revoked") }); err != nil {
		return err
	}
	return s.say("it reconnected and was refused: %s", quoted(s.first.last("certificate_revoked"), "error="))
}

func (s *stage) others() error {
	seen := s.backendLog.count("devices/SN-000002/telemetry")
	if err := s.until("more telemetry from SN-000002", func() bool { return s.backendLog.count("devices/SN-000002/telemetry") > seen+1 }); err != nil {
		return err
	}
	return s.say("SN-000002 publishes as before")
}

// quoted cuts the value of key="..." out of a log line.
func quoted(line, key string) string {
	_, rest, ok := strings.Cut(line, key+`"`)
	if !ok {
		return line
	}
	value, _, _ := strings.Cut(rest, `"`)
	return value
}
