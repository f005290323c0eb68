// The control listener: an MQTT 5 session with the dynamic-security plugin, kept open so that a kick costs one message.
//
// The plugin has no command that only ends sessions. Disabling and enabling a client it knows does, and creating and deleting one it does
// not know; both were measured to reach sessions on every listener. Being disabled would not keep a device out: its name
// comes from its certificate. The CRL does that.

package bridge

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

const (
	controlTopic   = "$CONTROL/dynamic-security/v1"
	controlAnswer  = "$CONTROL/dynamic-security/v1/response"
	controlTimeout = 5 * time.Second
	notFound       = "Client not found"
)

// mosquittoControl is the session. It is opened when it is first needed and again after it broke.
type mosquittoControl struct {
	address, user, passwordFile string
	tls                         *tls.Config

	mu      sync.Mutex
	client  *paho.Client
	answers chan []byte
	number  int
}

func newMosquittoControl(conf BrokerConfig, server *tls.Config, identity func() (*tls.Certificate, error)) *mosquittoControl {
	t := server.Clone()
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return identity() }
	return &mosquittoControl{address: conf.Control, user: conf.ControlUser, passwordFile: conf.ControlPasswordFile, tls: t}
}

// kick ends all sessions of device. It repeats once on a new connection, since the old one may have died unseen.
func (c *mosquittoControl) kick(ctx context.Context, device string) error {
	if strings.EqualFold(device, c.user) || strings.HasPrefix(strings.ToLower(device), reservedPrefix) {
		return fmt.Errorf("kick %s: a reserved name", device)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	known, err := c.command(ctx, device, "disableClient", "enableClient")
	if err == nil && !known {
		_, err = c.command(ctx, device, "createClient", "deleteClient")
	}
	if err != nil {
		return fmt.Errorf("kick %s: %w", device, err)
	}
	return nil
}

// command sends commands about device in one message, which the broker carries out without a pause, and checks each answer.
// known is false if the plugin has no such client.
func (c *mosquittoControl) command(ctx context.Context, device string, names ...string) (known bool, err error) {
	type one struct {
		Command  string `json:"command"`
		Username string `json:"username"`
		Tag      string `json:"correlationData"`
	}
	c.number++
	tag := strconv.Itoa(c.number)
	var commands []one
	for _, n := range names {
		commands = append(commands, one{n, device, tag})
	}
	payload, err := json.Marshal(map[string]any{"commands": commands})
	if err != nil {
		return false, err
	}
	answer, err := c.exchange(ctx, payload, tag)
	if err != nil {
		return false, err
	}
	known = true
	for i, name := range names {
		if i >= len(answer) || answer[i].Command != name {
			return false, fmt.Errorf("no answer to %s", name)
		}
		switch answer[i].Error {
		case "":
		case notFound:
			known = false
		default:
			return false, fmt.Errorf("%s: %s", name, answer[i].Error)
		}
	}
	return known, nil
}

type controlReply struct {
	Command string `json:"command"`
	Error   string `json:"error"`
	Tag     string `json:"correlationData"`
}

func (c *mosquittoControl) exchange(ctx context.Context, payload []byte, tag string) ([]controlReply, error) {
	for attempt := 0; ; attempt++ {
		fresh := c.client == nil
		if fresh {
			if err := c.connect(ctx); err != nil {
				return nil, err
			}
		}
		replies, err := c.ask(ctx, payload, tag)
		if err == nil {
			return replies, nil
		}
		c.drop()
		if fresh || attempt > 0 || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (c *mosquittoControl) ask(ctx context.Context, payload []byte, tag string) ([]controlReply, error) {
	if _, err := c.client.Publish(ctx, &paho.Publish{QoS: 1, Topic: controlTopic, Payload: payload}); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no answer on %s: %w", controlAnswer, ctx.Err())
		case <-c.client.Done():
			return nil, errors.New("the control connection broke")
		case data := <-c.answers:
			var message struct{ Responses []controlReply }
			if err := json.Unmarshal(data, &message); err != nil {
				return nil, fmt.Errorf("answer of the plugin: %w", err)
			}
			if len(message.Responses) > 0 && message.Responses[0].Tag == tag {
				return message.Responses, nil
			}
		}
	}
}

func (c *mosquittoControl) connect(ctx context.Context) error {
	password, err := os.ReadFile(c.passwordFile)
	if err != nil {
		return err
	}
	dialer := tls.Dialer{Config: c.tls}
	conn, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return fmt.Errorf("control listener: %w", err)
	}
	answers := make(chan []byte, 16)
	client := paho.NewClient(paho.ClientConfig{
		Conn:          packets.NewThreadSafeConn(conn),
		PacketTimeout: controlTimeout,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			select {
			case answers <- p.Packet.Payload:
			default: // nobody waits for that many
			}
			return true, nil
		}},
	})
	ack, err := client.Connect(ctx, &paho.Connect{
		ClientID: c.user + "-" + strconv.Itoa(os.Getpid()), CleanStart: true, KeepAlive: 30,
		Username: c.user, UsernameFlag: true, Password: []byte(strings.TrimSpace(string(password))), PasswordFlag: true,
	})
	if err != nil {
		conn.Close()
		if ack != nil {
			return fmt.Errorf("control listener refused with reason %d", ack.ReasonCode)
		}
		return fmt.Errorf("control listener: %w", err)
	}
	c.client, c.answers = client, answers
	sub := &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: controlAnswer}}}
	if _, err := client.Subscribe(ctx, sub); err != nil {
		c.drop()
		return fmt.Errorf("subscribe to %s: %w", controlAnswer, err)
	}
	return nil
}

func (c *mosquittoControl) drop() {
	if c.client != nil {
		c.client.Disconnect(&paho.Disconnect{})
		c.client = nil
	}
}

func (c *mosquittoControl) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}
