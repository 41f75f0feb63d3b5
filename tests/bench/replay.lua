-- For wrk: sends the requests of a file in turn, for ever. A line is "METHOD PATH TOKEN BODYFILE" (- for none).
-- Prints how many answers there were of each status, on one line.
local requests, n, threads = {}, 0, {}
statuses = ""
local counts = {}

function setup(thread)
	table.insert(threads, thread)
end

function init(args)
	for line in io.lines(args[1]) do
		local method, path, token, file = line:match("(%S+) (%S+) (%S+) (%S+)")
		local headers, body = { Authorization = "Bearer " .. token }, nil
		if file ~= "-" then
			local f = io.open(file, "rb")
			body = f:read("*a")
			f:close()
			headers["Content-Type"] = "application/json"
		end
		table.insert(requests, wrk.format(method, path, headers, body))
	end
end

function request()
	n = n + 1
	return requests[n % #requests + 1]
end

function response(status)
	counts[status] = (counts[status] or 0) + 1
	statuses = ""
	for s, k in pairs(counts) do
		statuses = statuses .. s .. "x" .. k .. " "
	end
end

function done()
	for _, thread in ipairs(threads) do
		io.write("answers ", thread:get("statuses"), "\n")
	end
end
