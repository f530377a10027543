// Test vCenter: govmomi's simulator plus what it lacks (real disk bytes through
// qemu-img, session check on /folder, NFC uploads that are kept), and faults on
// request (/rig/...). It ends with SIGTERM, and when its standard input ends.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type fault = types.BaseMethodFault

func exists(p string) bool                 { _, e := os.Stat(p); return e == nil }
func flat(p string) string                 { return strings.TrimSuffix(p, ".vmdk") + "-flat.vmdk" }
func dsRoot(d *simulator.Datastore) string { return d.Info.GetDatastoreInfo().Url }

// local file of "[datastore] a/b"
func local(name string) string {
	i := strings.Index(name, "]")
	if !strings.HasPrefix(name, "[") || i < 0 {
		return ""
	}
	for _, e := range simulator.Map.All("Datastore") {
		if d := e.(*simulator.Datastore); d.Name == name[1:i] {
			return filepath.Join(dsRoot(d), strings.TrimSpace(name[i+1:]))
		}
	}
	return ""
}

func qemuImg(args ...string) fault {
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		log.Printf("qemu-img %v: %s", args, out)
		return &types.InvalidArgument{InvalidProperty: string(out)}
	}
	return nil
}

func toFlat(src, dst string) fault {
	return qemuImg("convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat,adapter_type=lsilogic", src, dst)
}

// faults to come: operation -> name of the fault, each once
var broken sync.Map

func planned(kind string) fault {
	name, ok := broken.LoadAndDelete(kind)
	if !ok {
		return nil
	}
	switch name {
	case "NoDiskSpace":
		return &types.NoDiskSpace{Datastore: "full"}
	case "FileLocked":
		return &types.FileLocked{}
	case "NoPermission":
		return &types.NoPermission{}
	}
	return &types.CannotAccessFile{}
}

// what tests ask of the rig, besides the API
func control(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch strings.TrimPrefix(r.URL.Path, "/rig/") {
	case "fault":
		broken.Store(q.Get("op"), q.Get("name"))
	case "stores":
		for _, e := range simulator.Map.All("Datastore") {
			d := e.(*simulator.Datastore)
			fmt.Fprintf(w, "%s\t%s\n", d.Name, dsRoot(d))
		}
	case "store":
		for _, e := range simulator.Map.All("Datastore") {
			if d := e.(*simulator.Datastore); d.Name == q.Get("name") {
				if n, err := strconv.ParseInt(q.Get("free"), 10, 64); err == nil {
					d.Summary.FreeSpace = n
				}
				if q.Get("type") != "" {
					d.Summary.Type = q.Get("type")
				}
				if q.Get("mode") != "" {
					d.Summary.MaintenanceMode = q.Get("mode")
				}
			}
		}
	case "machine":
		for _, e := range simulator.Map.All("VirtualMachine") {
			m := e.(*simulator.VirtualMachine)
			if m.Name == q.Get("name") {
				changeMachine(m, q)
			}
		}
	case "machines":
		for _, e := range simulator.Map.All("VirtualMachine") {
			fmt.Fprintln(w, e.(*simulator.VirtualMachine).Name)
		}
	case "slow":
		n, _ := strconv.ParseInt(q.Get("seconds"), 10, 64)
		slow.Store(n)
	case "uploads":
		fmt.Fprintln(w, uploads.Load())
	case "expire":
		// as vCenter does with sessions that nobody uses
		cookies.Range(func(k, _ any) bool {
			cookies.Delete(k)
			expired.Store(k, true)
			return true
		})
	case "sessions":
		n := 0
		cookies.Range(func(_, _ any) bool { n++; return true })
		fmt.Fprintln(w, n)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func changeMachine(m *simulator.VirtualMachine, q url.Values) {
	if name := q.Get("rename"); name != "" {
		m.Name = name
		m.Config.Name = name
		return
	}
	if q.Get("unreadable") != "" {
		m.Config = nil
		return
	}
	m.Config.Annotation = q.Get("annotation")
	for _, d := range m.Config.Hardware.Device {
		disk, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		backing := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		backing.Parent = nil
		if q.Get("parent") != "" {
			backing.Parent = &types.VirtualDiskFlatVer2BackingInfo{DiskMode: "persistent"}
			backing.Parent.FileName = q.Get("parent")
		}
	}
}

type vdm struct{ *simulator.VirtualDiskManager }

func (m *vdm) run(kind string, f func() fault) types.ManagedObjectReference {
	t := simulator.CreateTask(m, kind, func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if kind == "copyVirtualDisk" {
			time.Sleep(time.Duration(slow.Load()) * time.Second)
		}
		if bad := planned(kind); bad != nil {
			return nil, bad
		}
		return nil, f()
	})
	t.Info.Entity = nil
	return t.Run()
}

func pair(src, dst string, f func(s, d string) fault) func() fault {
	return func() fault {
		s, d := local(src), local(dst)
		switch {
		case s == "" || d == "":
			return &types.InvalidDatastorePath{DatastorePath: src}
		case !exists(s):
			return &types.FileNotFound{FileFault: types.FileFault{File: src}}
		case exists(d):
			return &types.FileAlreadyExists{FileFault: types.FileFault{File: dst}}
		}
		return f(s, d)
	}
}

func (m *vdm) CopyVirtualDiskTask(_ *simulator.Context, r *types.CopyVirtualDisk_Task) soap.HasFault {
	t := m.run("copyVirtualDisk", pair(r.SourceName, r.DestName, toFlat))
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: t}}
}

func (m *vdm) MoveVirtualDiskTask(_ *simulator.Context, r *types.MoveVirtualDisk_Task) soap.HasFault {
	t := m.run("moveVirtualDisk", pair(r.SourceName, r.DestName, func(s, d string) fault {
		b, err := os.ReadFile(s)
		if err == nil {
			q := func(p string) string { return `"` + filepath.Base(flat(p)) + `"` }
			err = os.WriteFile(d, []byte(strings.ReplaceAll(string(b), q(s), q(d))), 0600)
		}
		if err == nil {
			err = os.Rename(flat(s), flat(d))
		}
		if err == nil {
			err = os.Remove(s)
		}
		if err != nil {
			return &types.CannotAccessFile{FileFault: types.FileFault{File: r.SourceName}}
		}
		return nil
	}))
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{Returnval: t}}
}

func (m *vdm) CreateVirtualDiskTask(_ *simulator.Context, r *types.CreateVirtualDisk_Task) soap.HasFault {
	t := m.run("createVirtualDisk", func() fault {
		d, ad, kb := local(r.Name), "lsilogic", int64(0)
		if exists(d) {
			return &types.FileAlreadyExists{FileFault: types.FileFault{File: r.Name}}
		}
		if s, ok := r.Spec.(*types.FileBackedVirtualDiskSpec); ok {
			kb, ad = s.CapacityKb, strings.ToLower(s.AdapterType)
		}
		return qemuImg("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat,adapter_type="+ad, d, fmt.Sprintf("%dK", kb))
	})
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{Returnval: t}}
}

type browser struct {
	*simulator.HostDatastoreBrowser
}

// the real browser lists everything when no pattern is given; the simulator nothing
func (b *browser) SearchDatastoreTask(s *types.SearchDatastore_Task) soap.HasFault {
	if s.SearchSpec == nil {
		s.SearchSpec = &types.HostDatastoreBrowserSearchSpec{}
	}
	if len(s.SearchSpec.MatchPattern) == 0 {
		s.SearchSpec.MatchPattern = []string{"*"}
	}
	return b.HostDatastoreBrowser.SearchDatastoreTask(s)
}

var cookies, expired sync.Map
var uploads, slow atomic.Int64

type recorder struct{ http.ResponseWriter }

func (r recorder) WriteHeader(n int)           { r.note(); r.ResponseWriter.WriteHeader(n) }
func (r recorder) Write(b []byte) (int, error) { r.note(); return r.ResponseWriter.Write(b) }
func (r recorder) note() {
	for _, c := range (&http.Response{Header: r.Header()}).Cookies() {
		cookies.Store(strings.Trim(c.Value, `"`), true)
	}
}

func front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/rig/") {
			control(w, r)
			return
		}
		for _, c := range r.Cookies() {
			if _, gone := expired.Load(strings.Trim(c.Value, `"`)); gone {
				r.Header.Del("Cookie")
			}
		}
		put := r.Method == "PUT" || r.Method == "POST"
		if put && !strings.HasPrefix(r.URL.Path, "/sdk") {
			uploads.Add(1)
		}
		if put && strings.HasPrefix(r.URL.Path, "/folder/") {
			if name, ok := broken.LoadAndDelete("put"); ok {
				switch name {
				case "cut":
					panic(http.ErrAbortHandler)
				case "short":
					data, _ := io.ReadAll(r.Body)
					p := local("[" + r.URL.Query().Get("dsName") + "] " + strings.TrimPrefix(r.URL.Path, "/folder/"))
					os.WriteFile(p, data[:len(data)/2], 0600)
				default:
					w.WriteHeader(http.StatusInsufficientStorage)
				}
				return
			}
		}
		if strings.HasPrefix(r.URL.Path, "/folder/") {
			ok := false
			for _, c := range r.Cookies() {
				if _, known := cookies.Load(strings.Trim(c.Value, `"`)); known || c.Name == "vmware_cgi_ticket" {
					ok = true
				}
			}
			if !ok {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			p := local("[" + r.URL.Query().Get("dsName") + "] " + strings.TrimPrefix(r.URL.Path, "/folder/"))
			if put && p != "" && !exists(filepath.Dir(p)) {
				w.WriteHeader(http.StatusNotFound)
				return
			}
		}
		if put && strings.HasPrefix(r.URL.Path, "/nfc/") {
			name := strings.TrimSuffix(path.Base(r.URL.Path), ".vmdk")
			for _, e := range simulator.Map.All("Datastore") {
				disk := filepath.Join(dsRoot(e.(*simulator.Datastore)), name, name+".vmdk")
				if !exists(disk) {
					continue
				}
				f, _ := os.Create(disk + ".nfc")
				io.Copy(f, r.Body)
				f.Close()
				os.Remove(disk)
				os.Remove(flat(disk))
				bad := toFlat(disk+".nfc", disk)
				os.Remove(disk + ".nfc")
				if bad != nil {
					w.WriteHeader(http.StatusInternalServerError)
				}
				return
			}
		}
		next.ServeHTTP(recorder{w}, r)
	})
}

// a certificate of today's strength, for loopback only
func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	about := x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "test vCenter"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &about, &about, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func main() {
	listen := flag.String("l", "127.0.0.1:0", "address")
	user := flag.String("u", "user", "user")
	pass := flag.String("p", "pass", "password")
	n := flag.Int("ds", 1, "datastores")
	flag.Parse()
	m := simulator.VPX()
	m.Datastore = *n
	if err := m.Create(); err != nil {
		log.Fatal(err)
	}
	defer m.Remove()
	for _, e := range simulator.Map.All("Datastore") {
		d := e.(*simulator.Datastore)
		d.Summary.Type = "VMFS"
		simulator.Map.Put(&browser{simulator.Map.Get(d.Browser).(*simulator.HostDatastoreBrowser)})
	}
	simulator.Map.Put(&vdm{simulator.Map.VirtualDiskManager().(*simulator.VirtualDiskManager)})
	m.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *pass)}
	m.Service.RegisterEndpoints = true
	m.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate()}}
	s := m.Service.NewServer()
	s.Server.Config.Handler = front(s.Server.Config.Handler)
	fmt.Println(s.URL)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		c <- syscall.SIGTERM
	}()
	<-c
	s.Close()
}
