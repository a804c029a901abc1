-- Number of names of fields, the names, then ids. Returns for each id the values as one JSON array, in which what is
-- not there is false: one long text is far less work for the client than many short ones.

local answer = {}
local names = {unpack(ARGV, 3, 2 + ARGV[2])}
for i = 3 + ARGV[2], #ARGV do
  answer[#answer + 1] = cjson.encode(redis.call('HMGET', DISPATCH .. ARGV[i], unpack(names)))
end
return answer
